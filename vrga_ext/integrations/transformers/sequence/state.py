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
from vrga_ext.prompts.question import QuestionEnd, QuestionFinder
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG
from vrga_ext.region import Region
from vrga_ext.steering import Rows, checked_region, empty_region, select_region

RegionHook = Callable[[int, Region], Region]


class SequenceState:
    """VRGA's state of the sequences in one KV cache."""

    @on_cpu
    def __init__(self) -> None:
        self.config = VRGAConfig()
        self.prompt = Prompt(owner="")  # nobody's, until begin
        self.run = self.prompt  # what the latest calls came with: the prompt, or more of its answer
        self.decoding = False
        self.image = torch.zeros(0, 0, dtype=torch.bool)  # [B, columns], image tokens
        self.keys = self.image  # [B, columns], V: image tokens and, if so configured, their lead
        self.axes: Tensor | None = None  # int64 [3, B, columns]: frame or time, row, column
        self._counted = self.image  # [B, columns], axes that the processor counted
        self.ends: list[QuestionEnd] = []
        self.attended: list[int] = []  # keys that each question row attends to
        self.lengths: list[int] = []  # tokens of each prompt row, padding not counted
        self.told = torch.zeros(0, 0, dtype=torch.long)  # [B, n], tokens of columns; -1 is unknown
        self.batch = 0  # rows of the cache; a compiled step must not depend on the shape of `image`
        self.copies = 1  # rows per sample of the prompt: beams, or returned sequences
        self.samples = torch.arange(0)  # int64 [B], index of each row's sample
        self.in_order = True  # the rows are the prompt's, or each of them repeated equally often
        self.rows: dict[int, Rows] = {}  # layer -> what the question rows showed
        self.regions: list[Region] = []  # one per sample, in use
        self.boosted = self.image  # [B, columns], T_q as boosted
        self.layer_heads: dict[int, Tensor | None] = {}  # layer -> gated [B, H], None is all
        self.idle_layers: set[int] = set()  # those of them in which no head is
        self.gate_keywords: dict[str, Any] = {}  # of the operations; once a layer is gated
        self._devices: dict[int, torch.device] = {}  # of each full-attention layer
        self._flags: dict[torch.device, Tensor] = {}  # uint8 [B, columns]
        self._image_flags: dict[torch.device, Tensor] = {}  # the same, V alone

    # ---- a prompt ----------------------------------------------------------------------------

    @on_cpu
    def begin(
        self,
        prompt: Prompt,
        config: VRGAConfig,
        batch: int,
        past: int,
        columns: int,
        token_ids: tuple[int, ...],
        question_end: str | int | Sequence[int],
        finder: QuestionFinder,
    ) -> None:
        """Start a prompt that will fill the cache up to ``columns``: image tokens, question ends.

        Raises
        ------
        ValueError
            ``question_end`` does not fit the prompt, or the prompt ends within the cache.
        """
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
        if past and self.batch == batch:  # what was generated since is never an image token
            kept = min(past, self.image.shape[1])
            image[:, :past] = False
            image[:, :kept] = self.image[:, :kept]
        else:
            self.axes = None
        image &= mask

        offset = config.question_offset
        if not image.any():  # nothing to check an index against
            question_end = "auto"
        self.ends = question_ends(
            ids[:, -known:], mask, image, past, question_end, finder, offset, copies
        )
        self.prompt = self.run = prompt
        self.config, self.copies = config, copies
        self.decoding = False
        self.batch = batch
        self.samples = torch.arange(batch) // copies
        self.in_order = True
        self.image = image
        self._counted = torch.zeros_like(image)
        self.keys = images.image_keys(image, config.image_span) & mask
        self._image_flags = {}
        self.lengths = mask.sum(1).tolist()
        self.attended = list(self.lengths)
        self.rows, self.regions = {}, []
        self._plain()

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
                [layer_rows.of(row) for layer_rows in rows],
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
        self._devices = {layer: rows.image_ratio.device for layer, rows in self.rows.items()}
        self._aim(regions, layers, rows[0].heads)
        self._done()
        return regions

    @on_cpu
    def finish_plain(self) -> list[Region]:
        """End a prompt that nothing is boosted for."""
        self._plain()
        self._done()
        self.regions = [empty_region(end, (), 0) for end in self.ends[:: self.copies]]
        return self.regions

    def _done(self) -> None:
        self.rows = {}
        self.decoding = self.prompt.finished = True

    # ---- decode steps ------------------------------------------------------------------------

    def _plain(self) -> None:
        self.layer_heads, self.idle_layers, self._flags = {}, set(), {}
        self.boosted = torch.zeros_like(self.image)

    def _aim(self, regions: list[Region], layers: tuple[int, ...], heads: int) -> None:
        """Turn one region per sample into the tensors of later decode steps.

        ``layers`` are the full-attention layers, ``heads`` the query heads of each.
        """
        self.regions = regions
        flags = torch.zeros(self.image.shape, dtype=torch.uint8)
        gated = torch.zeros(len(layers), len(flags), heads, dtype=torch.bool)
        order = {layer: index for index, layer in enumerate(layers)}
        for row, sample in enumerate(self.samples.tolist()):
            region = regions[sample]
            flags[row, region.image_positions] = IMAGE_FLAG
            flags[row, region.boosted] |= FOCUS_FLAG
            for layer, head in region.visual_heads:
                gated[order[layer], row, head] = True
        self._plain()
        self.boosted = (flags & FOCUS_FLAG) != 0
        config = self.config
        changed = FOCUS_FLAG if config.mode == "boost" else IMAGE_FLAG
        if config.is_identity or not (flags & changed).any():
            return
        if config.gate == "static" and not gated.any():
            return
        # On the layers' devices at once: a compiled step is to find them there in every token.
        devices = {flags.device, *self._devices.values()}
        self._set_flags({device: flags.to(device) for device in devices})
        self.gate_keywords = config.head_gate._asdict()
        if config.gate == "dynamic":
            self.layer_heads = dict.fromkeys(layers)
        else:
            gated_on = {device: gated.to(device) for device in devices}
            self.layer_heads = {
                layer: gated_on[self._devices.get(layer, gated.device)][order[layer]]
                for layer in layers
            }
            self.idle_layers = {layer for layer in layers if not gated[order[layer]].any()}

    def gates(self, layer: int) -> bool:
        """Whether a layer's decode step runs the operation.

        A layer without a gated head runs the model's own attention, but for a compiled step, which
        is to serve the next prompt as well, with other heads.
        """
        runs = torch.compiler.is_compiling() or layer not in self.idle_layers
        return runs and layer in self.layer_heads

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
        self._set_flags({on: flags[index.to(on)] for on, flags in self._flags.items()})
        for layer, heads in self.layer_heads.items():
            if heads is not None:
                self.layer_heads[layer] = heads[index.to(heads.device)]

    def _set_flags(self, flags: dict[torch.device, Tensor]) -> None:
        self._flags = flags
        for on_device in flags.values():  # one compiled step for prompts of any length
            torch._dynamo.maybe_mark_dynamic(on_device, 1)

    def flags_on(self, device: torch.device) -> Tensor:
        """Flags of the prompt's keys, uint8 [B, columns], on a layer's device."""
        if device not in self._flags:
            self._flags[device] = next(iter(self._flags.values())).to(device)
        return self._flags[device]

    def image_flags_on(self, device: torch.device) -> Tensor:
        """Flags of V alone, uint8 [B, columns], on a layer's device."""
        if device not in self._image_flags:
            self._image_flags[device] = self.keys.to(device, torch.uint8) * IMAGE_FLAG
        return self._image_flags[device]

    def heads_on(self, layer: int, device: torch.device) -> Tensor | None:
        """Gated heads of a layer, bool [B, H], on its device; None is all heads."""
        heads = self.layer_heads[layer]
        if heads is not None and heads.device != device:
            self.layer_heads[layer] = heads = heads.to(device)
        return heads
