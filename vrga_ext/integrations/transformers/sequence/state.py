"""VRGA's state of the sequences in one KV cache, from a prompt's tokens to a decode step's plan.

It lives on the cache it belongs to, so that several turns, copies of a cache, interleaved sessions
and exceptions need no clean-up. A state is built under ``torch.device("cpu")``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vrga_ext.config import VRGAConfig
from vrga_ext.integrations.transformers.sequence.prompt import UNKNOWN_TOKEN, Prompt, Stage
from vrga_ext.prompts import images
from vrga_ext.prompts.placeholders import Placeholders
from vrga_ext.prompts.question import QuestionFinder, question_ends
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG
from vrga_ext.region import Region
from vrga_ext.steering import (
    Plan,
    QuestionStatistics,
    build_plan,
    checked_region,
    empty_region,
    key_flags,
    select_region,
)

RegionHook = Callable[[int, Region], Region]


class SequenceState:
    """One prompt and its answer in the B sequences of a KV cache.

    Parameters
    ----------
    prompt
        Its tokens, or the last of them.
    config
        Thresholds.
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
        config: VRGAConfig,
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

        image = torch.zeros(batch, length, dtype=torch.bool)
        if prompt.image is None:
            given = images.image_mask(ids, placeholders.ids)
        else:
            given = prompt.image.repeat_interleave(copies, 0)
        image[:, length - known :] = given[:, -known:]
        if before is not None:
            kept = min(past, before.image.shape[1])
            image[:, :past] = False  # what was generated since is never an image token
            image[:, :kept] = before.image[:, :kept]
        image &= mask

        offset = config.question_offset
        if not image.any():  # nothing to check an index against
            question_end = "auto"
        self.ends = question_ends(
            ids[:, -known:], mask, image, past, question_end, finder, offset, copies
        )
        self.prompt = self.latest = prompt
        self.config, self.copies, self.batch = config, copies, batch
        self.decoding, self.in_order = False, True
        self.samples = torch.arange(batch) // copies
        self.image = image
        self.image_mask = images.image_span_mask(image, config.image_span) & mask
        self.lengths: list[int] = mask.sum(1).tolist()
        self.attended = list(self.lengths)
        self.question: dict[int, QuestionStatistics] = {}
        self.num_heads: int | None = None
        self.regions: list[Region] = []
        self.boosted = torch.zeros_like(image)
        self.plan: Plan | None = None
        self._image_flags: dict[torch.device, Tensor] = {}  # V alone

        self.axes: Tensor | None = None
        if before is not None and before.axes is not None:
            self.axes = before.axes.clone()
        self._counted = torch.zeros_like(image)  # axes that the processor counted
        self.told = ids[:, :0] if before is None else before.told
        self.tell(prompt.ids, length - prompt.ids.shape[1])
        if prompt.grids:
            self._add_grids(placeholders.video_ids, merge_size)

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

    def finish(self, fixed_grid: tuple[int, int] | None, hook: RegionHook | None) -> list[Region]:
        """Select heads and tokens for every sample, after the call with the prompt's end."""
        if not self.question:
            return self.finish_plain()
        with torch.device("cpu"):  # not the default device, if that is another
            layers = tuple(sorted(self.question))
            statistics = [self.question[layer] for layer in layers]
            regions = []
            for sample, index in enumerate(range(0, len(self.ends), self.copies)):
                found = self._select(index, layers, statistics, fixed_grid)
                if hook is not None and len(found.image_positions):
                    found = checked_region(hook(sample, found), found, self.image.shape[1])
                regions.append(found)
            samples, length = self.samples.tolist(), self.image.shape[1]
            flags = key_flags(regions, samples, length)
            self.boosted = (flags & FOCUS_FLAG) != 0
            devices = [self.question[layer].image_ratio.device for layer in layers]
            heads, gate = statistics[0].image_ratio.shape[1], self.config.head_gate
            self.plan = build_plan(flags, regions, samples, layers, devices, heads, gate)
        return self._finished(regions)

    def _select(
        self,
        index: int,
        layers: tuple[int, ...],
        found: list[QuestionStatistics],
        fixed_grid: tuple[int, int] | None,
    ) -> Region:
        """Heads and tokens of the sample whose first sequence is ``index``."""
        axes = None if self.axes is None else self.axes[:, index, : self.image.shape[1]]
        positions, spans = images.image_spans(
            self.image[index], self.image_mask[index], axes, fixed_grid
        )
        if not spans:
            return empty_region(self.ends[index], layers, found[0].image_ratio.shape[1])
        over = self.attended if self.config.ratio_keys == "attended" else self.lengths
        return select_region(
            found,
            index,
            layers,
            positions,
            spans,
            self.ends[index],
            self.attended[index],
            over[index],
            self.config,
        )

    def finish_plain(self) -> list[Region]:
        """End a prompt that nothing is boosted for."""
        with torch.device("cpu"):
            regions = [empty_region(end, (), 0) for end in self.ends[:: self.copies]]
        return self._finished(regions)

    def _finished(self, regions: list[Region]) -> list[Region]:
        self.question, self.regions = {}, regions
        self.decoding, self.prompt.stage = True, Stage.ANSWERING
        return regions

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
