"""What every engine steers with: question rows -> one Region per sample -> a frozen Plan.

Nothing here knows of an engine: rows and regions are tensors, a plan is what a decode step is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vrga_ext import selection
from vrga_ext.config import VRGAConfig
from vrga_ext.gate import Gate
from vrga_ext.prompts.question import QuestionEnd
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG
from vrga_ext.region import HeadIndex, Region
from vrga_ext.selection import Span


class Rows(NamedTuple):
    """Attention of one layer's question tokens, as :func:`vrga_ext.ops.row_statistics` gives it.

    Without the batch dimension B where it is of one sample.

    Attributes
    ----------
    image_attention : float32 [B, H, N]
        Attention on each of the prompt's N positions; 0 where there is no image token.
    image_ratio : float32 [B, H]
        R_img over the attended keys (no unit).
    image_entropy : float32 [B, H]
        H_img (nats).

    Examples
    --------
    >>> rows = Rows(torch.zeros(2, 8, 5), torch.ones(2, 8), torch.ones(2, 8))
    >>> rows.heads
    8
    """

    image_attention: Tensor
    image_ratio: Tensor
    image_entropy: Tensor

    @property
    def heads(self) -> int:
        """H, the number of query heads."""
        return self.image_ratio.shape[1]

    def of(self, row: int) -> Rows:
        """The tensors of one row, without the batch dimension."""
        return Rows(*(tensor[row] for tensor in self))


def stack_on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of several layers, stacked; where all are on one device, in one copy."""
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.cpu() for tensor in tensors]
    return torch.stack(list(tensors)).cpu()


def select_region(
    rows: list[Rows],
    layers: tuple[int, ...],
    positions: Tensor,
    spans: list[Span],
    end: QuestionEnd,
    attended: int,
    ratio_over: int,
    config: VRGAConfig,
) -> Region:
    """Select heads and tokens for one sample.

    Parameters
    ----------
    rows
        The sample's question row in each of the L layers.
    layers
        The model's index of each layer.
    positions : int64 [n]
        Prompt columns of the image keys.
    spans
        The sample's images.
    end
        The question row.
    attended, ratio_over
        Keys that the row attends to, and keys that ``R_img`` is to be a ratio over.
    config
        Thresholds.
    """

    def maps(heads: Tensor) -> Tensor:  # [k, n], in the order of the heads
        picked = [rows[layer].image_attention[head] for layer, head in heads.nonzero().tolist()]
        return stack_on_cpu(picked)[:, positions] if picked else torch.empty(0, len(positions))

    if config.epsilon:
        everything = stack_on_cpu([layer.image_attention for layer in rows])[..., positions]
        statistics = selection.row_statistics(everything, ratio_over, config.epsilon)
    else:
        ratio = stack_on_cpu([layer.image_ratio for layer in rows]).double()
        entropy = stack_on_cpu([layer.image_entropy for layer in rows]).double()
        statistics = selection.RowStatistics.of(ratio * (ratio_over / attended), entropy)
    visual = selection.visual_heads(statistics, config)
    background = selection.background_heads(statistics, config)
    refined = torch.zeros(len(positions), dtype=torch.float64)
    focus = boosted = torch.zeros(len(positions), dtype=torch.bool)
    if visual.any():
        refined = selection.refined_map(maps(visual), maps(background), config.background_weight)
        focus, suppressed = selection.focus_tokens(refined, spans, config)
        boosted = selection.widen_tokens(focus, suppressed, spans, config)
    return Region(
        question_end=end.position,
        question_rule=end.rule,
        image_positions=positions,
        images=tuple(spans),
        layers=layers,
        image_ratio=statistics.image_ratio,
        image_entropy=statistics.image_entropy,
        efr=statistics.efr,
        visual_heads=_pairs(visual, layers),
        background_heads=_pairs(background, layers),
        refined_map=refined,
        focus=positions[focus],
        boosted=positions[boosted],
    )


def checked_region(region: Any, found: Region, columns: int) -> Region:
    """What a region hook returned, if later steps can use it in place of ``found``.

    Raises
    ------
    TypeError
        It is no region.
    ValueError
        It names a head that the model does not have, or a column that is not of the prompt.
    """
    if not isinstance(region, Region):
        raise TypeError(f"region_hook: wanted a Region, got {type(region).__name__}")
    heads = found.image_ratio.shape[1]
    for layer, head in (*region.visual_heads, *region.background_heads):
        if layer not in found.layers or not 0 <= head < heads:
            raise ValueError(
                f"region_hook: wanted heads (layer, head) with a layer of {found.layers} and a "
                f"head below {heads}, got {(layer, head)}"
            )
    for name in ("image_positions", "boosted"):
        positions = getattr(region, name)
        if not isinstance(positions, Tensor) or positions.dtype != torch.long:
            got = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
            raise TypeError(f"region_hook: wanted {name} as an int64 tensor, got {got}")
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < columns:
            raise ValueError(
                f"region_hook: wanted {name} in [0, {columns}), got {positions.tolist()}"
            )
    return region


def empty_region(end: QuestionEnd, layers: tuple[int, ...], heads: int) -> Region:
    """Region of a sample without an image."""
    none = torch.empty(0, dtype=torch.long)
    zeros = torch.zeros(len(layers), heads, dtype=torch.float64)
    return Region(
        question_end=end.position,
        question_rule=end.rule,
        image_positions=none,
        images=(),
        layers=layers,
        image_ratio=zeros,
        image_entropy=zeros,
        efr=torch.full_like(zeros, torch.inf),
        visual_heads=(),
        background_heads=(),
        refined_map=torch.empty(0, dtype=torch.float64),
        focus=none,
        boosted=none,
    )


def _pairs(heads: Tensor, layers: tuple[int, ...]) -> tuple[HeadIndex, ...]:
    return tuple((layers[layer], head) for layer, head in heads.nonzero().tolist())


class LayerPlan(NamedTuple):
    """What a decode step of one layer is told.

    Attributes
    ----------
    flags : uint8 [B, N]
        ``key_flags`` of the operations, on the layer's device.
    heads : bool [B, H], optional
        Heads that may be reweighted, there, too; all of them without it.
    gate : Gate
        Which of these are, and by how much.
    """

    flags: Tensor
    heads: Tensor | None
    gate: Gate

    def on(self, device: torch.device) -> LayerPlan:
        """The plan on a device, where the layer has moved since."""
        if self.flags.device == device:
            return self
        heads = None if self.heads is None else self.heads.to(device)
        return LayerPlan(self.flags.to(device), heads, self.gate)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which keys of B sequences are reweighted in which layers and heads; built once per prompt.

    Attributes
    ----------
    layers : dict from layer to LayerPlan
        Layers in which a head may be reweighted in the next prompt, if not in this one.
    idle : frozenset of int
        Layers of them in which none is in this one.
    """

    layers: dict[int, LayerPlan]
    idle: frozenset[int] = frozenset()
    observer: ClassVar[None] = None  # nobody takes what the layers compute

    def plan_of(self, layer: int) -> LayerPlan | None:
        """What a layer is told; None where it runs the model's own attention.

        That is so where no head of it is reweighted, but for a compiled step, which is to serve the
        next prompt as well, with other heads.
        """
        if not torch.compiler.is_compiling() and layer in self.idle:
            return None
        return self.layers.get(layer)

    def reindexed(self, rows: Tensor) -> Plan:
        """The plan of sequences that are copies of these: ``rows``, int64 [B'], tells of which."""
        flags = {plan.flags.device: plan.flags for plan in self.layers.values()}
        flags = {device: _growing(there[rows.to(device)]) for device, there in flags.items()}
        layers = {}
        for layer, plan in self.layers.items():
            heads = None if plan.heads is None else plan.heads[rows.to(plan.heads.device)]
            layers[layer] = LayerPlan(flags[plan.flags.device], heads, plan.gate)
        return Plan(layers, self.idle)


def key_flags(regions: Sequence[Region], samples: Sequence[int], columns: int) -> Tensor:
    """``key_flags`` of the operations, uint8 [B, columns].

    ``samples``: index of the region of each of the B sequences.
    """
    flags = torch.zeros(len(samples), columns, dtype=torch.uint8)
    for row, sample in enumerate(samples):
        flags[row, regions[sample].image_positions] = IMAGE_FLAG
        flags[row, regions[sample].boosted] |= FOCUS_FLAG
    return flags


def build_plan(
    flags: Tensor,
    regions: Sequence[Region],
    samples: Sequence[int],
    devices: Mapping[int, torch.device],
    heads: int,
    config: VRGAConfig,
) -> Plan | None:
    """The plan of decode steps, on the layers' devices; None where nothing would change.

    Parameters
    ----------
    flags : uint8 [B, columns]
        Of :func:`key_flags`.
    regions, samples
        As there.
    devices
        Device of each full-attention layer, in their order.
    heads
        H, the query heads of each.
    config
        Thresholds.
    """
    changed = FOCUS_FLAG if config.mode == "boost" else IMAGE_FLAG
    if config.is_identity or not (flags & changed).any():
        return None
    order = {layer: index for index, layer in enumerate(devices)}
    gated = torch.zeros(len(order), len(samples), heads, dtype=torch.bool)
    for row, sample in enumerate(samples):
        for layer, head in regions[sample].visual_heads:
            gated[order[layer], row, head] = True
    is_static, gate = config.gate == "static", config.head_gate
    if is_static and not gated.any():
        return None
    # On the devices at once: a compiled step is to find them there in every token.
    flags_on = {device: _growing(flags.to(device)) for device in set(devices.values())}
    gated_on = {device: gated.to(device) for device in set(devices.values())} if is_static else {}
    layers = {
        layer: LayerPlan(flags_on[on], gated_on[on][order[layer]] if is_static else None, gate)
        for layer, on in devices.items()
    }
    idle = [layer for layer in layers if is_static and not gated[order[layer]].any()]
    return Plan(layers, frozenset(idle))


def _growing(flags: Tensor) -> Tensor:
    """Flags of a prompt of any length, for one compiled step."""
    torch._dynamo.maybe_mark_dynamic(flags, 1)
    return flags
