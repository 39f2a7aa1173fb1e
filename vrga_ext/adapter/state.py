"""What VRGA knows of a prompt and of a sequence, from tokens to the tensors of a decode step.

A :class:`Prompt` lives for one call of ``generate`` (or one forward call of a manual loop). A
:class:`SequenceState` lives on the KV cache it belongs to, so multi-turn use, copies of a cache,
interleaved sessions and exceptions need no clean-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrga_ext import ops
from vrga_ext.adapter import images
from vrga_ext.adapter.question import QuestionEnd, QuestionFinder, given_ends
from vrga_ext.adapter.regions import Region, empty_region, select_region
from vrga_ext.config import VRGAConfig
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG

QuestionEndArgument = str | int | Sequence[int] | Tensor
RegionHook = Callable[[int, Region], Region]


class Prompt:
    """Tokens of one prompt, on the CPU.

    Parameters
    ----------
    owner
        Key of the handle that the prompt belongs to.
    ids : int64 [B, S], optional
        The prompt's tokens, or the last S of them if the rest is in the cache already.
    token_types : [B, S], optional
        The processor's token types, 0 for text.
    managed
        Whether ``generate`` runs it, so that every later forward call is a decode step.
    """

    def __init__(
        self, owner: int, ids: Tensor | None, token_types: Tensor | None, managed: bool
    ) -> None:
        self.owner = owner
        self.ids = None if ids is None else ids.detach().cpu()
        self.token_types = None if token_types is None else token_types.detach().cpu()
        self.managed = managed
        self.active = managed  # until generate returns
        self.columns: int | None = None  # cache columns at the prompt's end, if generate told
        self.mask: Tensor | None = None  # bool [B, columns], False is padding


class SequenceState:
    """VRGA's state of the sequences in one KV cache."""

    def __init__(self) -> None:
        self.config = VRGAConfig()
        self.prompt = Prompt(
            owner=-1, ids=None, token_types=None, managed=False
        )  # nobody's, until begin
        self.decoding = False
        self.image: Tensor = torch.zeros(0, 0, dtype=torch.bool)  # [B, columns]
        self.keys: Tensor = (
            self.image
        )  # [B, columns], V: the image tokens and, if so configured, their lead
        self.axes: Tensor | None = None  # int64 [3, B, columns], multi-axis rotary positions
        self.ends: list[QuestionEnd] = []
        self.attended: list[int] = []  # keys that each question row attends to
        self.lengths: list[int] = []  # tokens of each prompt row, padding not counted
        self.copies = 1  # rows per sample: beams, or returned sequences
        self.rows: dict[int, Tensor] = {}  # layer -> image attention fp32 [B, H, columns]
        self.layer_heads: dict[int, Tensor | None] = {}  # layer -> gated heads [B, H], None is all
        self._flags: dict[torch.device, Tensor] = {}  # uint8 [B, columns]

    def begin(
        self,
        prompt: Prompt,
        config: VRGAConfig,
        batch: int,
        past: int,
        columns: int,
        token_ids: tuple[int, ...],
        question_end: QuestionEndArgument,
        finder: QuestionFinder,
    ) -> None:
        """Start a prompt that will fill the cache up to ``columns``: image tokens, question ends.

        Raises
        ------
        ValueError
            ``question_end`` does not fit the prompt.
        """
        assert prompt.ids is not None
        copies = batch // prompt.ids.shape[0]
        ids = prompt.ids.repeat_interleave(copies, 0)
        types = prompt.token_types
        types = None if types is None else types.repeat_interleave(copies, 0)
        known = min(ids.shape[1], columns)  # tokens of the prompt that are known, the last ones

        mask = torch.ones(batch, columns, dtype=torch.bool)
        if prompt.mask is not None:
            given = prompt.mask[:, :columns]
            mask[:, : given.shape[1]] = given.repeat_interleave(batch // given.shape[0], 0)
        image = torch.zeros(batch, columns, dtype=torch.bool)
        image[:, columns - known :] = images.image_mask(ids, token_ids, types)[:, -known:]
        if past and self.image.shape[0] == batch:  # generated tokens are never image tokens
            kept = min(past, self.image.shape[1])
            image[:, :past] = False
            image[:, :kept] = self.image[:, :kept]

        self.ends = _question_ends(
            ids[:, -known:],
            mask,
            image & mask,
            past,
            question_end,
            finder,
            config.question_offset,
            copies,
        )
        self.prompt, self.config, self.copies = prompt, config, copies
        self.decoding = False
        self.image = image & mask
        self.keys = images.image_keys(self.image, config.image_span)
        self.lengths = mask.sum(1).tolist()
        self.attended = list(self.lengths)
        self.layer_heads, self._flags, self.rows = {}, {}, {}

    def add_axes(self, position_ids: Tensor | None, past: int) -> None:
        """Keep the multi-axis positions of a prefill forward call, [3 or 4, B, q]."""
        if position_ids is None or position_ids.dim() != 3 or position_ids.shape[0] < 3:
            return
        axes = position_ids[-3:].detach().cpu()
        batch, columns = self.image.shape
        if self.axes is None or self.axes.shape[1] != batch:
            self.axes = torch.zeros(3, batch, columns, dtype=torch.long)
        elif self.axes.shape[2] < columns:
            self.axes = torch.nn.functional.pad(self.axes, (0, columns - self.axes.shape[2]))
        self.axes[:, :, past : past + axes.shape[2]] = axes

    def finish(self, fixed_grid: tuple[int, int] | None, hook: RegionHook | None) -> list[Region]:
        """Select heads and tokens for every row once all rows have been recorded."""
        layers = tuple(sorted(self.rows))
        heads = self.rows[layers[0]].shape[1]
        regions = []
        for row, end in enumerate(self.ends):
            positions, spans = images.image_spans(
                self.image[row],
                None if self.axes is None else self.axes[:, row, : self.image.shape[1]],
                fixed_grid,
                self.config.image_span,
            )
            if not spans:
                regions.append(empty_region(end, layers, heads))
                continue
            attention = torch.stack([self.rows[layer][row][:, positions].cpu() for layer in layers])
            attended = self.attended if self.config.ratio_keys == "attended" else self.lengths
            region = select_region(
                attention, layers, positions, spans, end, attended[row], self.config
            )
            regions.append(region if hook is None else hook(row // self.copies, region))
        self.rows = {}
        self._gate(regions, layers, heads)
        self.decoding = True
        return regions[:: self.copies]

    def without_image(self) -> list[Region]:
        """Regions of a prompt that no row of has an image: it is generated plainly."""
        self.decoding = True
        return [empty_region(end, (), 0) for end in self.ends[:: self.copies]]

    def _gate(self, regions: list[Region], layers: tuple[int, ...], heads: int) -> None:
        """Turn regions into the tensors of a decode step."""
        flags = torch.zeros(self.image.shape, dtype=torch.uint8)
        gated = torch.zeros(len(layers), len(regions), heads, dtype=torch.bool)
        order = {layer: index for index, layer in enumerate(layers)}
        for row, region in enumerate(regions):
            flags[row, region.image_positions] = IMAGE_FLAG
            flags[row, region.boosted] |= FOCUS_FLAG
            for layer, head in region.visual_heads:
                gated[order[layer], row, head] = True
        self._flags = {flags.device: flags}
        changed = FOCUS_FLAG if self.config.mode == "boost" else IMAGE_FLAG
        if self.config.is_identity or not (flags & changed).any():
            return
        if self.config.gate == "dynamic":
            self.layer_heads = dict.fromkeys(layers)
        else:
            self.layer_heads = {
                layer: gated[index] for index, layer in enumerate(layers) if gated[index].any()
            }

    def flags_on(self, device: torch.device) -> Tensor:
        """Flags of the prompt's keys, uint8 [B, columns], on a layer's device."""
        if device not in self._flags:
            self._flags[device] = next(iter(self._flags.values())).to(device)
        return self._flags[device]

    def heads_on(self, layer: int, device: torch.device) -> Tensor | None:
        """Gated heads of a layer, bool [B, H], on its device; None is all heads."""
        heads = self.layer_heads[layer]
        if heads is not None and heads.device != device:
            self.layer_heads[layer] = heads = heads.to(device)
        return heads


def _question_ends(
    ids: Tensor,
    mask: Tensor,
    image: Tensor,
    past: int,
    question_end: QuestionEndArgument,
    finder: QuestionFinder,
    offset: int,
    copies: int,
) -> list[QuestionEnd]:
    """The question's end of every row; ids [B, S] are the last tokens of the prompt."""
    batch, columns = mask.shape
    if not isinstance(question_end, str):
        given = given_ends(question_end, mask[::copies], past)
        return [end for end in given for _ in range(copies)]
    first = columns - ids.shape[1]
    ends = []
    for row in range(batch):
        kept = mask[row, first:].nonzero().flatten()
        index, rule = finder.find(
            ids[row, kept].tolist(), image[row, first + kept].tolist(), offset
        )
        column = first + int(kept[index])
        if column < past:  # read before this call
            column, rule = first + int(kept[-1]), "last_token"
        ends.append(QuestionEnd(column, rule))
    return ends


class PrefillPass:
    """One forward call over prompt tokens: records the question rows that fall into it.

    Parameters
    ----------
    state
        The sequences that the call belongs to.
    past
        Cache columns before the call.
    rows
        Tokens of the call.
    """

    def __init__(self, state: SequenceState, past: int, rows: int) -> None:
        self.state = state
        self.past = past
        self.end = past + rows
        local = [end.position - past for end in state.ends]
        self._here = [row for row, index in enumerate(local) if 0 <= index < rows]
        self._index = [min(max(index, 0), rows - 1) for index in local]
        self._on: dict[torch.device, _PassTensors] = {}
        self._counted = False

    def record(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float | None,
        softcap: float,
    ) -> None:
        """Image attention of the question row of every sample in this call, for one layer.

        ``query`` [B, H, q, D], ``key`` [B, Hkv, K, D], ``mask`` broadcastable to [B, H, q, K].
        """
        if not self._here:
            return
        on = self._tensors_on(query.device)
        row = query.detach()[on.samples, :, on.ends]  # [B, H, D]
        key = key.detach()
        if mask is None:  # causal, without padding
            key = key[:, :, : self.past + max(self._index) + 1]
            mask = torch.arange(key.shape[2], device=key.device) <= (self.past + on.ends)[:, None]
            mask = mask[:, None, None]  # [B, 1, 1, K]
        else:
            mask = mask.expand(len(on.samples), *mask.shape[1:])
            mask = mask[on.samples, :, on.ends if mask.shape[2] > 1 else 0][
                :, :, None
            ]  # [B, h, 1, K]
        result = ops.row_statistics(
            row, key, on.flags[:, : key.shape[2]], attn_mask=mask, scale=scale, softcap=softcap
        )
        columns = self.state.image.shape[1]
        missing = columns - result.image_attention.shape[2]
        recorded = torch.nn.functional.pad(result.image_attention, (0, missing))
        self.state.rows.setdefault(layer, torch.zeros_like(recorded))[on.here] = recorded[on.here]
        if not self._counted:  # the same for every layer
            self._counted = True
            counts = _attended(mask).sum(-1)[:, 0, 0].tolist()
            for sample in self._here:
                self.state.attended[sample] = counts[sample]

    def _tensors_on(self, device: torch.device) -> _PassTensors:
        if device not in self._on:
            self._on[device] = _PassTensors(
                ends=torch.tensor(self._index, device=device),
                samples=torch.arange(len(self._index), device=device),
                here=torch.tensor(self._here, device=device),
                flags=self.state.keys.to(device, torch.uint8) * IMAGE_FLAG,
            )
        return self._on[device]


class _PassTensors(NamedTuple):
    ends: Tensor  # int64 [B], row of the call that is the sample's question end
    samples: Tensor  # int64 [B], 0 ... B - 1
    here: Tensor  # int64, samples whose question end is in this call
    flags: Tensor  # uint8 [B, columns]


def _attended(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def state_of(cache: Any) -> SequenceState | None:
    """The state kept on a KV cache, or None."""
    return getattr(cache, "_vrga_state", None)


def attach_state(cache: Any, state: SequenceState) -> None:
    """Keep a state on a KV cache."""
    cache._vrga_state = state
