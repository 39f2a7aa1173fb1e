"""One prompt as the hooks see it: tokens, padding, image tokens, and where it ends in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vrga_ext.adapter.question import QuestionEnd, QuestionFinder, given_ends


class Prompt:
    """Tokens of one prompt, on the CPU; it lives for one call of ``generate`` or of ``forward``.

    Parameters
    ----------
    owner
        Key of the handle that the prompt belongs to.
    ids : int64 [B, S], optional
        The prompt's tokens, or the last S of them if the rest is in the cache already.
    mask : [B, columns], optional
        Attention mask, 0 for padding.
    outer
        The prompt of another run that this one interrupts.
    managed
        Whether ``generate`` runs it, so that every later forward call is a decode step.
    """

    def __init__(
        self,
        owner: int,
        ids: Tensor | None = None,
        mask: Any = None,
        outer: Prompt | None = None,
        managed: bool = False,
    ) -> None:
        self.owner = owner
        self.ids = None if ids is None else ids.detach().cpu()
        self.mask: Tensor | None = None
        self.set_mask(mask)
        self.outer = outer
        self.managed = managed
        self.active = managed  # until generate returns
        self.finished = False  # every column has been read
        self.call_ids: Tensor | None = None  # int64 [B, q], tokens of the forward call, if watched
        self.columns: int | None = None  # cache columns at its end, if known beforehand
        if managed and self.ids is not None:
            self.columns = (self.ids if self.mask is None else self.mask).shape[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Prompt:
        return self  # a copy of a cache belongs to the same run

    def set_mask(self, mask: Any) -> None:
        """Take a two-dimensional attention mask, if it is one and none is known."""
        if self.mask is None and isinstance(mask, Tensor) and mask.dim() == 2:
            self.mask = mask.detach().cpu().bool()

    def padding_mask(self, batch: int, columns: int) -> Tensor:
        """Tokens of the prompt as bool [B, columns]; what no mask covers is no padding."""
        mask = torch.ones(batch, columns, dtype=torch.bool)
        if self.mask is not None:
            given = self.mask[:, :columns]
            mask[:, : given.shape[1]] = given.repeat_interleave(batch // given.shape[0], 0)
        return mask


def question_ends(
    ids: Tensor,
    mask: Tensor,
    image: Tensor,
    past: int,
    question_end: str | Sequence[int] | int,
    finder: QuestionFinder,
    offset: int,
    copies: int,
) -> list[QuestionEnd]:
    """The question's end of every row.

    Parameters
    ----------
    ids : int64 [B, S]
        The last S tokens of the prompt.
    mask, image : bool [B, columns]
        Tokens of the prompt, and image tokens among them.
    past
        Columns that have been read already.
    question_end
        ``"auto"``, one column, or one per sample.
    finder, offset
        See :meth:`QuestionFinder.find`.
    copies
        Rows per sample.
    """
    batch, columns = mask.shape
    if not isinstance(question_end, str):
        given = given_ends(question_end, mask[::copies], past)
        return [end for end in given for _ in range(copies)]
    first = columns - ids.shape[1]
    ends = []
    for row in range(batch):
        kept = mask[row, first:].nonzero().flatten()
        if not len(kept):  # nothing but padding
            ends.append(QuestionEnd(columns - 1, "last_token"))
            continue
        index, rule = finder.find(
            ids[row, kept].tolist(), image[row, first + kept].tolist(), offset
        )
        column = first + int(kept[index])
        if column < past:  # read before this call
            column, rule = first + int(kept[-1]), "last_token"
        ends.append(QuestionEnd(column, rule))
    return ends
