"""One prompt as the hooks see it: tokens, padding, image tokens, and where it ends in the cache."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vrga_ext.integrations.transformers.on_cpu import on_cpu
from vrga_ext.prompts.grids import GRID_ARGUMENTS
from vrga_ext.prompts.placeholders import positions_told
from vrga_ext.prompts.question import READ_BEFORE, QuestionEnd, QuestionFinder, given_ends

UNKNOWN_TOKEN = -1
# Arguments of a model whose tensors are not images, though they look like it.
_NO_PIXELS = frozenset({"attention_mask", "position_ids", "cache_position", "labels"})


class Prompt:
    """Tokens of one prompt, on the CPU; it lives for one call of ``generate`` or of ``forward``.

    Parameters
    ----------
    owner
        Key of the handle that the prompt belongs to.
    given
        Arguments of that call. ``input_ids`` [B, S] are the prompt's tokens, or the last S of them
        if the rest is in the cache already; so are ``inputs_embeds`` [B, S, D] and the processor's
        ``mm_token_type_ids`` [B, S], 0 for text. ``attention_mask`` [B, columns] is 0 for padding.
    outer
        The prompt of another run that this one interrupts.
    managed
        Whether ``generate`` runs it, so that every later forward call is a decode step.

    Attributes
    ----------
    ids : int64 [B, S], optional
        The tokens; all unknown where only embeddings and an image mask were given. Without it,
        nobody knows where the image is.
    image : bool [B, S], optional
        Image tokens, if somebody declared them or the call says where they are; else the ids tell.
    pixels : bool
        Whether the call came with pictures, their features, or embeddings.
    returned : int
        Tokens of the prompt that ``generate`` returns before those of the answer.

    Raises
    ------
    ValueError
        The declared image mask does not fit the tokens.
    """

    @on_cpu
    def __init__(
        self,
        owner: str,
        given: Mapping[str, Any] | None = None,
        outer: Prompt | None = None,
        managed: bool = False,
    ) -> None:
        given = {} if given is None else given
        self.owner, self.outer, self.managed = owner, outer, managed
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        self.pixels = _has_pixels(given)
        self.returned = 0 if ids is None else ids.shape[1]
        if embeds is not None and (ids is None or ids.shape != embeds.shape[:2]):
            ids = None  # generate() may be given other tokens than are embedded, or none
        self.ids = None if ids is None else ids.detach().cpu()
        types = given.get("mm_token_type_ids")
        self.token_types = None if types is None else types.detach().cpu()
        self.image: Tensor | None = None
        self.grids = {
            kind: given[name].detach().cpu()
            for kind, name in GRID_ARGUMENTS.items()
            if given.get(name) is not None
        }
        self.mask: Tensor | None = None
        self.set_mask(given.get("attention_mask"))
        self.active = managed  # until generate returns
        self.entered = not managed  # until forward returns, where there is no generate
        self.finished = False  # every column has been read
        self.columns: int | None = None  # cache columns at its end, if known beforehand
        self.call_ids: Tensor | None = None  # tokens of the forward call, for recorders
        self.read: Any = None  # the decoder's output on the prompt, while it verifies drafts
        tokens = embeds if embeds is not None else self.ids
        if tokens is not None:
            self._declare(given, tuple(tokens.shape[:2]))
            if managed:
                self.columns = (tokens if self.mask is None else self.mask).shape[1]

    @property
    def nested(self) -> bool:
        """Whether it interrupts a prompt of its own model, as guidance's second prompt does."""
        return self.outer is not None and self.outer.owner == self.owner

    def _declare(self, given: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        """Take the image mask of the ``with`` block that the call is in, or the call's own."""
        declared = declared_image_mask.get()
        if declared is None or declared[0] != self.owner or self.nested:
            self.image = positions_told(given, shape)
        else:
            self.image = declared[1]
        if self.image is not None and self.image.shape != shape:
            raise ValueError(
                f"image_mask: wanted one value per prompt token, shape {shape}, "
                f"got {tuple(self.image.shape)}"
            )
        if self.image is not None and self.ids is None:
            self.ids = torch.full(shape, UNKNOWN_TOKEN)

    def __deepcopy__(self, memo: dict[int, Any]) -> Prompt:
        return self  # a copy of a cache belongs to the same run

    def set_mask(self, mask: Any) -> None:
        """Take the padding of an attention mask, [B, columns] or [B, H, S, columns].

        A four-dimensional one tells it in a manual loop, where the call is the prompt: what no row
        attends to is padding.
        """
        if self.mask is not None or not isinstance(mask, Tensor):
            return
        if mask.dim() == 2:
            self.mask = mask.detach().cpu().bool()
        elif mask.dim() == 4 and not self.managed:
            additive = mask.is_floating_point()
            attended = mask > torch.finfo(mask.dtype).min if additive else mask.bool()
            self.mask = attended.detach().any(dim=2).any(dim=1).cpu()

    @on_cpu
    def padding_mask(self, batch: int, columns: int) -> Tensor:
        """Tokens of the prompt as bool [B, columns]; what no mask covers is no padding."""
        mask = torch.ones(batch, columns, dtype=torch.bool)
        if self.mask is not None:
            given = self.mask[:, :columns]
            mask[:, : given.shape[1]] = given.repeat_interleave(batch // given.shape[0], 0)
        return mask


# Set inside ``VRGAHandle.image_mask``: the handle's key and the mask, bool [B, S].
declared_image_mask: contextvars.ContextVar[tuple[str, Tensor] | None] = contextvars.ContextVar(
    "vrga_image_mask", default=None
)
# The innermost prompt that a call of ``generate`` or ``forward`` in this thread is about.
current_prompt: contextvars.ContextVar[Prompt | None] = contextvars.ContextVar(
    "vrga_prompt", default=None
)


def leave_interrupted(owner: str) -> None:
    """Forget prompts whose forward call an interrupt ended: no hook runs after one.

    To be called where no forward call of this handle's model can be under way.
    """
    prompt = current = current_prompt.get()
    while prompt is not None and prompt.owner == owner and prompt.entered:
        prompt = prompt.outer
    if prompt is not current:
        current_prompt.set(prompt)


def prompt_being_read(owner: str) -> Prompt | None:
    """The current prompt, if it is of this handle and has not been read to its end."""
    prompt = current_prompt.get()
    return None if prompt is None or prompt.owner != owner or prompt.finished else prompt


@contextlib.contextmanager
def generate_prompt(owner: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Prompt]:
    """Make the prompt of a call of ``generate`` the current one."""
    given = (args[0] if args else None, kwargs.get("inputs"), kwargs.get("input_ids"))
    ids = next((tokens for tokens in given if tokens is not None), None)
    leave_interrupted(owner)
    outer = current_prompt.get()
    prompt = Prompt(owner, kwargs | {"input_ids": ids}, outer=outer, managed=True)
    token = current_prompt.set(prompt)
    try:
        yield prompt
    finally:
        prompt.active, prompt.read = False, None
        current_prompt.reset(token)


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
        if not len(kept):
            ends.append(QuestionEnd(columns - 1, "last_token", "the row is nothing but padding"))
            continue
        end = finder.find(ids[row, kept].numpy(), image[row, first + kept].numpy(), offset)
        column = first + int(kept[end.position])
        if column < past:
            ends.append(QuestionEnd(first + int(kept[-1]), "last_token", READ_BEFORE))
        else:
            ends.append(dataclasses.replace(end, position=column))
    return ends


def _has_pixels(given: Mapping[str, Any]) -> bool:
    """Whether a call's arguments hold pictures, their features, or embeddings."""
    return any(
        isinstance(tensor, Tensor)
        and (tensor.dim() > 2 or (tensor.dim() == 2 and tensor.is_floating_point()))
        for name, value in given.items()
        if name not in _NO_PIXELS
        for tensor in (value if isinstance(value, (list, tuple)) else [value])
    )
