"""What every engine steers with: question statistics -> one Region per sample -> a frozen Plan.

The module imports no engine. An engine reads the statistics in the prompt, and applies the plan in
each decode step.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class QuestionStatistics(NamedTuple):
    """Attention of one layer's question tokens, as :func:`vrga_ext.ops.row_statistics` gives it.

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
    >>> found = QuestionStatistics(torch.zeros(2, 8, 5), torch.ones(2, 8), torch.ones(2, 8))
    >>> found.image_ratio.shape
    torch.Size([2, 8])
    """

    image_attention: Tensor
    image_ratio: Tensor
    image_entropy: Tensor


def stack_on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of several layers on the CPU, with a single copy if they share a device.

    Parameters
    ----------
    tensors : sequence of L tensors [...]
        Of one shape and dtype.

    Returns
    -------
    [L, ...]

    Examples
    --------
    >>> stack_on_cpu([torch.zeros(3), torch.ones(3)]).shape
    torch.Size([2, 3])
    """
    for tensor in tensors:
        if tensor.device != tensors[0].device:
            return torch.stack([tensor.cpu() for tensor in tensors])
    return torch.stack(list(tensors)).cpu()


def select_region(
    found: Sequence[QuestionStatistics],
    index: int,
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
    found : sequence of L QuestionStatistics
        Of B sequences, in each layer.
    index : int
        The sample's sequence among them.
    layers : tuple of L int
        The model's index of each layer.
    positions : int64 [n]
        Positions of the image tokens in the prompt.
    spans : list of Span
        The sample's images.
    end : QuestionEnd
        The token whose attention was read.
    attended : int
        Keys that it attends to.
    ratio_over : int
        Keys over which the mean in the denominator of ``R_img`` is taken.
    config : VRGAConfig
        Thresholds.

    Returns
    -------
    Region
        Without visual heads, nothing is boosted.

    Examples
    --------
    >>> attention = torch.tensor([[[0.0, 0.9, 0.0], [0.1, 0.1, 0.1]]])  # 2 heads, 3 positions
    >>> ratio, entropy = torch.tensor([[1.8, 0.4]]), torch.tensor([[0.1, 0.6]])
    >>> region = select_region(
    ...     [QuestionStatistics(attention, ratio, entropy)], 0, (5,), torch.tensor([0, 1]),
    ...     [Span(0, 2, 0, (1, 2))], QuestionEnd(2, "given"),
    ...     attended=3, ratio_over=3, config=VRGAConfig.paper(),
    ... )
    >>> region.visual_heads, region.focus
    (((5, 0),), tensor([1]))
    """
    if config.epsilon:
        everything = stack_on_cpu([layer.image_attention[index] for layer in found])[..., positions]
        statistics = selection.row_statistics(everything, ratio_over, config.epsilon)
    else:
        ratio = stack_on_cpu([layer.image_ratio[index] for layer in found]).double()
        entropy = stack_on_cpu([layer.image_entropy[index] for layer in found]).double()
        statistics = selection.RowStatistics.from_ratio(ratio * (ratio_over / attended), entropy)
    visual = selection.visual_heads(statistics, config)
    background = selection.background_heads(statistics, config)
    refined = torch.zeros(len(positions), dtype=torch.float64)
    focus = boosted = torch.zeros(len(positions), dtype=torch.bool)
    if visual.any():
        refined = selection.refined_map(
            _maps(found, index, visual)[:, positions],
            _maps(found, index, background)[:, positions],
            config.background_weight,
        )
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


def _maps(found: Sequence[QuestionStatistics], index: int, heads: Tensor) -> Tensor:
    """Image attention [k, N] of a sequence in the k heads of bool [L, H], in their order."""
    picked = [found[layer].image_attention[index, head] for layer, head in heads.nonzero().tolist()]
    return stack_on_cpu(picked) if picked else torch.empty(0, found[0].image_attention.shape[2])


def checked_region(region: Any, found: Region, length: int) -> Region:
    """Check what a region hook returned, before it replaces ``found``.

    Parameters
    ----------
    region
        What the hook returned.
    found : Region
        What the hook was given.
    length : int
        Positions of the prompt.

    Returns
    -------
    Region
        ``region``.

    Raises
    ------
    TypeError
        It is not a Region, or its positions are not int64 tensors.
    ValueError
        It names a head that the model does not have, or a position outside the prompt.
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
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < length:
            raise ValueError(
                f"region_hook: wanted {name} in [0, {length}), got {positions.tolist()}"
            )
    return region


def empty_region(end: QuestionEnd, layers: tuple[int, ...], heads: int) -> Region:
    """Region of a sample without an image: every statistic 0, no head and no token selected."""
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
    pairs = [(layers[layer], head) for layer, head in heads.nonzero().tolist()]
    return tuple(pairs)


class LayerPlan(NamedTuple):
    """How a decode step reweights the attention of one layer.

    Attributes
    ----------
    flags : uint8 [B, N]
        ``key_flags`` of the operations, on the layer's device.
    heads : bool [B, H], optional
        Heads that may be reweighted, on the layer's device; None for all of them.
    gate : Gate
        Condition and weights of the reweighting.

    Examples
    --------
    >>> plan = LayerPlan(torch.zeros(1, 3, dtype=torch.uint8), None, Gate())
    >>> plan.on(torch.device("cpu")) is plan
    True
    """

    flags: Tensor
    heads: Tensor | None
    gate: Gate

    def on(self, device: torch.device) -> LayerPlan:
        """The plan on the device to which the layer has moved; itself if it has not moved."""
        if self.flags.device == device:
            return self
        heads = None if self.heads is None else self.heads.to(device)
        return LayerPlan(self.flags.to(device), heads, self.gate)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which keys of B sequences are reweighted in which layers and heads; built once per prompt.

    Attributes
    ----------
    layers : dict of int to LayerPlan
        By layer, those with a gated head in this prompt and those that may have one in the next.
    idle : frozenset of int
        Those of ``layers`` without a gated head in this prompt.

    Examples
    --------
    >>> layer = LayerPlan(torch.zeros(1, 3, dtype=torch.uint8), None, Gate())
    >>> plan = Plan({4: layer, 5: layer}, idle=frozenset({5}))
    >>> plan.plan_of(4) is layer, plan.plan_of(5)
    (True, None)
    >>> plan.reindexed(torch.tensor([0, 0])).layers[4].flags.shape
    torch.Size([2, 3])
    """

    layers: dict[int, LayerPlan]
    idle: frozenset[int] = frozenset()
    observer: ClassVar[None] = None  # no recorder reads what the layers compute

    def plan_of(self, layer: int) -> LayerPlan | None:
        """The plan of a layer; None where it runs the model's own attention.

        A layer without a gated head does. In a compiled step it does not: the same graph also
        serves the next prompt, which may gate heads of this layer.
        """
        if not torch.compiler.is_compiling() and layer in self.idle:
            return None
        return self.layers.get(layer)

    def reindexed(self, sources: Tensor) -> Plan:
        """The plan of B' sequences that are copies of these.

        Parameters
        ----------
        sources : int64 [B']
            The sequence that each of them is a copy of.
        """
        flags = {plan.flags.device: plan.flags for plan in self.layers.values()}
        flags = {device: _growing(there[sources.to(device)]) for device, there in flags.items()}
        layers = {}
        for layer, plan in self.layers.items():
            heads = None if plan.heads is None else plan.heads[sources.to(plan.heads.device)]
            layers[layer] = LayerPlan(flags[plan.flags.device], heads, plan.gate)
        return Plan(layers, self.idle)


def key_flags(regions: Sequence[Region], samples: Sequence[int], length: int) -> Tensor:
    """``key_flags`` of the operations for B sequences.

    Parameters
    ----------
    regions : sequence of Region
        One per sample.
    samples : sequence of B int
        The sample of each sequence.
    length : int
        N, positions of the prompt.

    Returns
    -------
    uint8 [B, N]
    """
    flags = torch.zeros(len(samples), length, dtype=torch.uint8)
    for sequence, sample in enumerate(samples):
        flags[sequence, regions[sample].image_positions] = IMAGE_FLAG
        flags[sequence, regions[sample].boosted] |= FOCUS_FLAG
    return flags


def build_plan(
    flags: Tensor,
    regions: Sequence[Region],
    samples: Sequence[int],
    layers: Sequence[int],
    devices: Sequence[torch.device],
    heads: int,
    gate: Gate,
) -> Plan | None:
    """Plan the decode steps of B sequences, on the layers' devices.

    Parameters
    ----------
    flags : uint8 [B, N]
        What :func:`key_flags` returns.
    regions : sequence of Region
        One per sample.
    samples : sequence of B int
        The sample of each sequence.
    layers : sequence of int
        The full-attention layers, as the model counts them.
    devices : sequence of torch.device
        Device of each of these layers.
    heads : int
        H, query heads of each layer.
    gate : Gate
        Condition and weights of the reweighting.

    Returns
    -------
    Plan, optional
        None where no head would be reweighted.
    """
    changed = FOCUS_FLAG if gate.image_weight == 1.0 else IMAGE_FLAG
    if gate.focus_weight == gate.image_weight == 1.0 or not (flags & changed).any():
        return None
    is_static = gate.gate == "static"
    order = {layer: position for position, layer in enumerate(layers)}
    gated = torch.zeros(len(layers), len(samples), heads, dtype=torch.bool)
    for sequence, sample in enumerate(samples):
        for layer, head in regions[sample].visual_heads:
            gated[order[layer], sequence, head] = True
    if is_static and not gated.any():
        return None
    # On the devices now: a compiled step must find its tensors there at every token.
    flags_on, gated_on = {}, {}
    for device in set(devices):
        flags_on[device] = _growing(flags.to(device))
        gated_on[device] = gated.to(device)
    plans, idle = {}, set()
    for position, (layer, device) in enumerate(zip(layers, devices, strict=True)):
        allowed = gated_on[device][position] if is_static else None
        plans[layer] = LayerPlan(flags_on[device], allowed, gate)
        if is_static and not gated[position].any():
            idle.add(layer)
    return Plan(plans, frozenset(idle))


def _growing(flags: Tensor) -> Tensor:
    """Flags whose length may change, so that one compiled step serves prompts of any length."""
    torch._dynamo.maybe_mark_dynamic(flags, 1)
    return flags
