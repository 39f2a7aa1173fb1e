"""VRGA's state of the sequences in one KV cache, from a prompt's tokens to a decode step's tensors.

It lives on the cache it belongs to, so that several turns, copies of a cache, interleaved sessions
and exceptions need no clean-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vrga_ext.config import VRGAConfig
from vrga_ext.integrations.transformers.on_cpu import on_cpu
from vrga_ext.integrations.transformers.sequence.prompt import Prompt, question_ends
from vrga_ext.prompts import grids, images
from vrga_ext.prompts.question import QuestionFinder
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
    """One prompt and its answer on a KV cache of B rows.

    Parameters
    ----------
    prompt
        Its tokens, or the last of them.
    config
        Thresholds.
    batch
        B: the prompt's rows, or a multiple of them (beams, or returned sequences).
    past
        Columns of the cache before the prompt.
    columns
        Columns once it has been read.
    token_ids
        Ids of image and video tokens.
    question_end, finder
        Where the question ends: see :func:`question_ends`.
    before
        What the cache held so far, of the same rows: an earlier turn.

    Attributes
    ----------
    run : Prompt
        What the latest calls came with: the prompt, or more of its answer.
    image : bool [B, columns]
        Image tokens.
    keys : bool [B, columns]
        V: image tokens and, if so configured, the token before each image.
    axes : int64 [3, B, columns], optional
        Frame or time, grid row and grid column of image tokens.
    ends, attended, lengths
        Of each row: where its question ends, how many keys that token attends to, and how many
        tokens the prompt has, padding not counted.
    told : int64 [B, n]
        Tokens of the cache's columns and of an answer that goes on after them; -1 is unknown.
    batch : int
        B; a compiled step must not depend on the shape of ``image``. 0 where rows were lost.
    copies : int
        Rows per sample of the prompt.
    samples : int64 [B]
        Index of each row's sample.
    in_order : bool
        Whether the rows are the prompt's, or each of them repeated equally often.
    rows : dict from layer to QuestionStatistics
        What the question rows showed, while the prompt is read.
    regions : list of Region
        One per sample, once it has been read; ``boosted``, bool [B, columns], their tokens.
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

    @on_cpu
    def __init__(
        self,
        prompt: Prompt,
        config: VRGAConfig,
        batch: int,
        past: int,
        columns: int,
        token_ids: tuple[int, ...],
        question_end: str | int | Sequence[int],
        finder: QuestionFinder,
        before: SequenceState | None = None,
    ) -> None:
        assert prompt.ids is not None
        if columns <= past:
            raise ValueError(
                f"attention_mask: wanted one over the {past} cached and the new tokens, since "
                f"input_ids are {columns} tokens"
            )
        copies = max(batch // prompt.ids.shape[0], 1)
        ids = prompt.ids.repeat_interleave(copies, 0)
        known = min(ids.shape[1], columns)  # tokens of the prompt that are known, the last ones
        mask = prompt.padding_mask(batch, columns)

        image = torch.zeros(batch, columns, dtype=torch.bool)
        if prompt.image is None:
            given = images.image_mask(ids, token_ids)
        else:
            given = prompt.image.repeat_interleave(copies, 0)
        image[:, columns - known :] = given[:, -known:]
        if past and before is not None and before.batch == batch:
            kept = min(past, before.image.shape[1])
            image[:, :past] = False  # what was generated since is never an image token
            image[:, :kept] = before.image[:, :kept]
        else:
            before = None
        image &= mask

        offset = config.question_offset
        if not image.any():  # nothing to check an index against
            question_end = "auto"
        self.ends = question_ends(
            ids[:, -known:], mask, image, past, question_end, finder, offset, copies
        )
        self.prompt = self.run = prompt
        self.config, self.copies, self.batch = config, copies, batch
        self.decoding, self.in_order = False, True
        self.samples = torch.arange(batch) // copies
        self.image = image
        self.keys = images.image_span_mask(image, config.image_span) & mask
        self.axes: Tensor | None = None
        if before is not None and before.axes is not None:
            self.axes = before.axes.clone()
        self._counted = torch.zeros_like(image)  # axes that the processor counted
        self.told = ids[:, :0] if before is None else before.told
        self.lengths: list[int] = mask.sum(1).tolist()
        self.attended = list(self.lengths)
        self.rows: dict[int, QuestionStatistics] = {}
        self.regions: list[Region] = []
        self.boosted = torch.zeros_like(image)
        self.plan: Plan | None = None
        self._image_flags: dict[torch.device, Tensor] = {}  # V alone

    @on_cpu
    def add_grids(self, video_ids: tuple[int, ...], merge: int) -> None:
        """Take the grids that the prompt was given with, where they count its image tokens."""
        prompt, columns = self.prompt, self.image.shape[1]
        if not prompt.grids or prompt.ids is None:
            return
        known = min(prompt.ids.shape[1], columns)
        image = prompt.image
        if image is None:
            image = self.image[:: self.copies, columns - known :]
        kinds = grids.token_kinds(
            image[:, -known:], prompt.ids[:, -known:], prompt.token_types, video_ids
        )
        axes, counted = grids.grid_axes(kinds, prompt.grids, merge)
        counted = counted.repeat_interleave(self.copies, 0)
        self._store_axes(axes.repeat_interleave(self.copies, 1), columns - known, counted)
        self._counted[:, columns - known :] = counted

    @on_cpu
    def add_positions(self, position_ids: Any, past: int) -> None:
        """Take the multi-axis positions of a prefill forward call, [3 or 4, B, q], as axes."""
        if not isinstance(position_ids, Tensor) or position_ids.dim() != 3:
            return
        batch, columns = self.image.shape
        if position_ids.shape[0] < 3 or position_ids.shape[1] != batch:
            return
        axes = position_ids[-3:, :, : columns - past].detach().cpu()  # drafts are no prompt
        end = past + axes.shape[2]
        self._store_axes(axes, past, ~self._counted[:, past:end])

    def _store_axes(self, axes: Tensor, first: int, where: Tensor) -> None:
        """Keep axes [3, B, n] from a column on, where bool [B, n] says so."""
        batch, columns = self.image.shape
        if self.axes is None:
            self.axes = torch.zeros(3, batch, columns, dtype=torch.long)
        elif self.axes.shape[2] < columns:
            self.axes = torch.nn.functional.pad(self.axes, (0, columns - self.axes.shape[2]))
        kept = self.axes[:, :, first : first + axes.shape[2]]
        kept.copy_(torch.where(where, axes, kept))

    @on_cpu
    def finish(self, fixed_grid: tuple[int, int] | None, hook: RegionHook | None) -> list[Region]:
        """Select heads and tokens for every sample, once all question rows have been recorded."""
        if not self.rows:
            return self.finish_plain()
        layers = tuple(sorted(self.rows))
        rows = [self.rows[layer] for layer in layers]
        regions = []
        for sample, row in enumerate(range(0, len(self.ends), self.copies)):
            positions, spans = images.image_spans(
                self.image[row],
                self.keys[row],
                None if self.axes is None else self.axes[:, row, : self.image.shape[1]],
                fixed_grid,
            )
            if not spans:
                regions.append(empty_region(self.ends[row], layers, rows[0].heads))
                continue
            over = self.attended if self.config.ratio_keys == "attended" else self.lengths
            region = select_region(
                [layer_rows.sample(row) for layer_rows in rows],
                layers,
                positions,
                spans,
                self.ends[row],
                self.attended[row],
                over[row],
                self.config,
            )
            if hook is not None:
                region = checked_region(hook(sample, region), region, self.image.shape[1])
            regions.append(region)
        samples, columns = self.samples.tolist(), self.image.shape[1]
        devices = {layer: self.rows[layer].image_ratio.device for layer in layers}
        flags = key_flags(regions, samples, columns)
        self.regions, self.boosted = regions, (flags & FOCUS_FLAG) != 0
        self.plan = build_plan(flags, regions, samples, devices, rows[0].heads, self.config)
        self._done()
        return regions

    @on_cpu
    def finish_plain(self) -> list[Region]:
        """End a prompt that nothing is boosted for."""
        self._done()
        self.regions = [empty_region(end, (), 0) for end in self.ends[:: self.copies]]
        return self.regions

    def _done(self) -> None:
        self.rows = {}
        self.decoding = self.prompt.finished = True

    # ---- decode steps ------------------------------------------------------------------------

    @on_cpu
    def take(self, rows: Any) -> None:
        """Follow the cache, each of whose rows has become a copy of one that was there before.

        ``rows``: its index, in any form that torch indexes with on the CPU. Beams change places
        within a sample, where nothing changes.
        """
        every = torch.arange(self.batch)
        try:
            index = every[rows]
        except IndexError:  # rows were added past the methods of the cache
            self.batch = 0
            return
        samples = self.samples[index]
        if torch.equal(samples, self.samples):
            return
        times = len(index) // self.batch
        self.in_order &= torch.equal(index, every.repeat_interleave(times))
        self.samples, self.batch = samples, len(index)
        self.image, self.keys, self.boosted = (
            tensor[index] for tensor in (self.image, self.keys, self.boosted)
        )
        self.told = self.told[index] if len(self.told) else self.told
        self._image_flags = {}
        self.axes = None if self.axes is None else self.axes[:, index]
        self.plan = None if self.plan is None else self.plan.reindexed(index)

    def image_flags_on(self, device: torch.device) -> Tensor:
        """Flags of V alone, uint8 [B, columns], on a layer's device."""
        if device not in self._image_flags:
            self._image_flags[device] = self.keys.to(device, torch.uint8) * IMAGE_FLAG
        return self._image_flags[device]
