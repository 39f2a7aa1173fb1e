"""VRGA's state of the sequences in one KV cache, from a prompt's tokens to a decode step's plan.

It lives on the cache it belongs to, so that several turns, copies of a cache, interleaved sessions
and exceptions need no clean-up. A state is built under ``torch.device("cpu")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vrga_ext.integrations.transformers.sequence.prompt import UNKNOWN_TOKEN, Prompt, Stage
from vrga_ext.plan import Plan
from vrga_ext.prompts import images
from vrga_ext.prompts.guided import Places
from vrga_ext.prompts.placeholders import Placeholders
from vrga_ext.prompts.question import QuestionFinder, question_ends
from vrga_ext.reference import IMAGE_FLAG
from vrga_ext.region import Region
from vrga_ext.steering import QuestionStatistics


class SequenceState:
    """One prompt and its answer in the B sequences of a KV cache.

    Parameters
    ----------
    prompt
        Its tokens, or the last of them, and the settings of its samples.
    placeholders
        Ids of image and video tokens.
    merge_size
        Patches along each side of an image token.
    batch
        B: the prompt's samples, or a multiple of them (beams, or returned sequences).
    past
        Positions of the cache before the prompt.
    length
        N, positions of the cache once it has been read.
    question_end, finder
        Where the question ends: see :func:`vrga_ext.prompts.question.question_ends`.
    before
        What the cache held so far, of the same sequences: an earlier turn.

    Attributes
    ----------
    prompt : Prompt
        The prompt.
    latest : Prompt
        What the latest calls came with: the prompt, or more of its answer.
    image : bool [B, N]
        Image tokens.
    image_mask : bool [B, N]
        V: image tokens and, if so configured, the token before each image.
    axes : int64 [3, B, N], optional
        Frame or time, grid row and grid column of image tokens.
    ends : list of QuestionEnd
        Of each sequence.
    attended, lengths : list of int
        Of each sequence: how many keys its question's end attends to, and how many tokens the
        prompt has, padding not counted.
    told : int64 [B, n]
        Tokens of the cache's positions and of an answer that goes on after them; -1 is unknown.
    batch : int
        B; a compiled step must not depend on the shape of ``image``. 0 after sequences were lost.
    copies : int
        Sequences per sample of the prompt.
    samples : int64 [B]
        Index of each sequence's sample.
    in_order : bool
        Whether the sequences are the prompt's, or each of them repeated equally often.
    decoding : bool
        Whether the prompt has been read to its end.
    question : dict from layer to QuestionStatistics
        Attention of the questions' last tokens, while the prompt is read.
    num_heads : int, optional
        H, the query heads of the layers in ``question``; None before the first one.
    regions : list of Region
        One per sample, once it has been read.
    boosted : bool [B, N]
        The boosted tokens of ``regions``.
    is_applied : bool
        Whether VRGA is applied to any sample.
    is_scheduled : bool
        Whether the plan changes from token to token.
    settings : tuple of Settings
        Of each sample.
    places : tuple of Places, optional each
        Where the guide of each sample lies; None without a guide.
    plan : Plan, optional
        Of decode steps, where anything is reweighted.

    Raises
    ------
    ValueError
        ``question_end`` does not fit the prompt, or the prompt ends within the cache.
    """

    batch: int
    image: Tensor
    told: Tensor

    def __init__(
        self,
        prompt: Prompt,
        placeholders: Placeholders,
        merge_size: int,
        batch: int,
        past: int,
        length: int,
        question_end: str | int | Sequence[int],
        finder: QuestionFinder,
        before: SequenceState | None = None,
    ) -> None:
        assert prompt.ids is not None
        if length <= past:
            raise ValueError(
                f"attention_mask: wanted one over the {past} cached and the new tokens, since "
                f"input_ids are {length} tokens"
            )
        if before is not None and (not past or before.batch != batch):
            before = None
        copies = max(batch // prompt.ids.shape[0], 1)
        ids = prompt.ids.repeat_interleave(copies, 0)
        known = min(ids.shape[1], length)  # tokens of the prompt that are known, the last ones
        mask = prompt.padding_mask(batch, length)

        image = prompt.image_mask(
            placeholders.ids, past, length, None if before is None else before.image, batch
        )

        settings = prompt.settings
        configs = [own.config for own in settings for _ in range(copies)]  # of each sequence
        offsets = [config.question_offset for config in configs]
        if not image.any():  # nothing to check an index against
            question_end = "auto"
        self.ends = question_ends(
            ids[:, -known:], mask, image, past, question_end, finder, offsets, copies
        )
        self.prompt = self.latest = prompt
        self.settings = settings
        self.is_applied = True in [own.applied for own in settings]
        self.places: tuple[Places | None, ...] = prompt.places or (None,) * len(settings)
        self.copies, self.batch = copies, batch
        self.decoding, self.in_order = False, True
        self.samples = torch.arange(batch) // copies
        self.image = image
        kinds = [config.image_span for config in configs]
        self.image_mask = images.image_span_mask(image, kinds) & mask
        self.lengths: list[int] = mask.sum(1).tolist()
        self.attended = list(self.lengths)
        self.question: dict[int, QuestionStatistics] = {}
        self.num_heads: int | None = None
        self.regions: list[Region] = []
        self.boosted = torch.zeros_like(image)
        self.plan: Plan | None = None
        self.is_scheduled = False
        self._image_flags: dict[torch.device, Tensor] = {}  # V alone

        self.axes: Tensor | None = None
        if before is not None and before.axes is not None:
            self.axes = before.axes.clone()
        self._counted = torch.zeros_like(image)  # axes that the processor counted
        self.told = ids[:, :0] if before is None else before.told
        self.tell(prompt.ids, length - prompt.ids.shape[1])
        if prompt.grids:
            self._add_grids(placeholders.video_ids, merge_size)

    @property
    def is_identity(self) -> bool:
        """Whether every sample stays as the model has it."""
        return all(own.is_identity for own in self.settings)

    def tell(self, ids: Tensor, first: int) -> None:
        """Note tokens [B or fewer, S] from a position on, and none after them.

        With those that ``generate`` returns, the cache can tell more of its answer from a prompt.
        """
        ids, first = ids[:, max(-first, 0) :].detach().cpu(), max(first, 0)  # more than the mask
        ids = ids.repeat_interleave(max(self.batch // ids.shape[0], 1), 0)
        before = torch.full((self.batch, first), UNKNOWN_TOKEN, device="cpu")
        if self.told.shape[0] == self.batch:
            known = self.told[:, :first]
            before[:, : known.shape[1]] = known
        self.told = torch.cat([before, ids], 1)

    def _add_grids(self, video_ids: tuple[int, ...], merge_size: int) -> None:
        """Take the grids that the prompt was given with, where they count its image tokens."""
        prompt, length = self.prompt, self.image.shape[1]
        assert prompt.ids is not None
        known = min(prompt.ids.shape[1], length)
        image = prompt.image
        if image is None:
            image = self.image[:: self.copies, length - known :]
        kinds = images.token_kinds(
            image[:, -known:], prompt.ids[:, -known:], prompt.token_types, video_ids
        )
        axes, counted = images.grid_axes(kinds, prompt.grids, merge_size)
        counted = counted.repeat_interleave(self.copies, 0)
        self._store_axes(axes.repeat_interleave(self.copies, 1), length - known, counted)
        self._counted[:, length - known :] = counted

    def add_positions(self, position_ids: Any, past: int) -> None:
        """Take the multi-axis positions of a prefill forward call, [3 or 4, B, q], as axes."""
        if not isinstance(position_ids, Tensor) or position_ids.dim() != 3:
            return
        batch, length = self.image.shape
        if position_ids.shape[0] < 3 or position_ids.shape[1] != batch:
            return
        axes = position_ids[-3:, :, : length - past].detach().cpu()  # drafts are no prompt
        end = past + axes.shape[2]
        self._store_axes(axes, past, ~self._counted[:, past:end])

    def _store_axes(self, axes: Tensor, first: int, where: Tensor) -> None:
        """Keep axes [3, B, n] from a position on, where bool [B, n] says so."""
        batch, length = self.image.shape
        if self.axes is None:
            self.axes = torch.zeros(3, batch, length, dtype=torch.long)
        elif self.axes.shape[2] < length:
            self.axes = torch.nn.functional.pad(self.axes, (0, length - self.axes.shape[2]))
        kept = self.axes[:, :, first : first + axes.shape[2]]
        kept.copy_(torch.where(where, axes, kept))

    def finish(self, regions: list[Region], plan: Plan | None) -> None:
        """End the prompt: its regions, one per sample, and the plan of its answer."""
        self.boosted = torch.zeros_like(self.image)
        for sequence, sample in enumerate(self.samples.tolist()):
            self.boosted[sequence, regions[sample].boosted] = True
        self.question, self.regions, self.plan = {}, regions, plan
        self.is_scheduled = plan is not None and plan.schedule is not None
        self.decoding, self.prompt.stage = True, Stage.ANSWERING

    # ---- decode steps ------------------------------------------------------------------------

    def reindex(self, index: Any) -> None:
        """Follow the cache, each of whose sequences has become a copy of one that it held before.

        Parameters
        ----------
        index
            Of that one, for each sequence; in any form that torch indexes with on the CPU. Beams
            change places within a sample, where nothing changes.
        """
        with torch.device("cpu"):
            every = torch.arange(self.batch)
            try:
                index = every[index]
            except IndexError:  # sequences were added past the methods of the cache
                self.batch = 0
                return
            samples = self.samples[index]
            if torch.equal(samples, self.samples):
                if self.plan is not None and self.plan.schedule is not None:
                    schedule = self.plan.schedule.reindexed(index)  # beams have read other tokens
                    self.plan = replace(self.plan, schedule=schedule)
                return
            times = len(index) // self.batch
            self.in_order &= torch.equal(index, every.repeat_interleave(times))
            self.samples, self.batch = samples, len(index)
            self.image, self.image_mask, self.boosted = (
                tensor[index] for tensor in (self.image, self.image_mask, self.boosted)
            )
            self.told = self.told[index] if len(self.told) else self.told
            self._image_flags = {}
            self.axes = None if self.axes is None else self.axes[:, index]
            self.plan = None if self.plan is None else self.plan.reindexed(index)

    def image_flags_on(self, device: torch.device) -> Tensor:
        """Flags of V alone, uint8 [B, N], on a layer's device."""
        if device not in self._image_flags:
            self._image_flags[device] = self.image_mask.to(device, torch.uint8) * IMAGE_FLAG
        return self._image_flags[device]
