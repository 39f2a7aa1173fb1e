"""From regions to the plan of decode steps: flags, heads and gates of every layer.

The module imports no engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vrga_ext.gate import Gate
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG
from vrga_ext.region import HeadIndex, Region
from vrga_ext.schedule import Schedule


class GateRun(NamedTuple):
    """A gate, and how many sequences in a row it is of.

    Attributes
    ----------
    gate : Gate
        Condition and weights of the reweighting.
    sequences : int
        Sequences in a row.

    Examples
    --------
    >>> GateRun(Gate(), 2).sequences
    2
    """

    gate: Gate
    sequences: int


class LayerPlan(NamedTuple):
    """How a decode step reweights the attention of one layer.

    Attributes
    ----------
    flags : uint8 [B, N], or [B, q, N]
        ``key_flags`` of the operations, on the layer's device; of each query where a schedule
        changes them within one call.
    heads : bool [B, H], optional
        Heads that may be reweighted, on the layer's device; None for all of them.
    gates : tuple of GateRun
        Condition and weights of the reweighting, in the order of the sequences.

    Examples
    --------
    >>> plan = LayerPlan(torch.zeros(1, 3, dtype=torch.uint8), None, (GateRun(Gate(), 1),))
    >>> plan.on(torch.device("cpu")) is plan
    True
    """

    flags: Tensor
    heads: Tensor | None
    gates: tuple[GateRun, ...]

    @property
    def is_uniform(self) -> bool:
        """Whether one call of an operation serves every sequence and query."""
        return len(self.gates) == 1 and self.flags.dim() == 2

    def on(self, device: torch.device) -> LayerPlan:
        """The plan on the device to which the layer has moved; itself if it has not moved."""
        if self.flags.device == device:
            return self
        heads = None if self.heads is None else self.heads.to(device)
        return LayerPlan(self.flags.to(device), heads, self.gates)


class Part(NamedTuple):
    """Sequences and queries of a layer that one call of an operation serves.

    Attributes
    ----------
    sequences, queries : slice
        Which of them.
    flags : uint8 [b, N]
        Of its b sequences.
    heads : bool [b, H], optional
        Of its b sequences; None for all heads.
    gate : Gate
        Condition and weights of the reweighting.

    Examples
    --------
    >>> flags = torch.zeros(1, 3, dtype=torch.uint8)
    >>> part = Part(slice(1, 2), slice(0, 2), flags, None, Gate())
    >>> torch.zeros(2, 8, 4, 5)[part.at].shape
    torch.Size([1, 8, 2, 5])
    """

    sequences: slice
    queries: slice
    flags: Tensor
    heads: Tensor | None
    gate: Gate

    @property
    def at(self) -> tuple[slice, slice, slice]:
        """Index of the part into a tensor [B, H, q, ...]."""
        return self.sequences, slice(None), self.queries

    def of_mask(self, mask: Tensor) -> Tensor:
        """The part of a mask that broadcasts to [B, H, q, K]."""
        batch = self.sequences if mask.dim() == 4 and mask.shape[0] > 1 else slice(None)
        if mask.dim() > 1 and mask.shape[-2] > 1:
            mask = mask[..., self.queries, :]
        return mask[batch]


def parts_of(plan: LayerPlan, queries: int) -> list[Part]:
    """What one call of an operation can serve, sequences first; one part if all is uniform.

    Parameters
    ----------
    plan : LayerPlan
        Of B sequences.
    queries : int
        q, queries of the call.
    """
    each = plan.flags.dim() == 3
    steps = [slice(q, q + 1) for q in range(queries)] if each else [slice(0, queries)]
    parts, first = [], 0
    for gate, count in plan.gates:
        last = first + count if len(plan.gates) > 1 else len(plan.flags)
        sequences = slice(first, last)
        heads = None if plan.heads is None else plan.heads[sequences]
        for step in steps:
            flags = plan.flags[sequences, step.start] if each else plan.flags[sequences]
            parts.append(Part(sequences, step, flags, heads, gate))
        first = last
    return parts


def join_parts(pieces: tuple[Tensor, ...], queries: int) -> Tensor:
    """[B, H, q, ...] from the pieces that the parts of :func:`parts_of` have."""
    if len(pieces) == 1:
        return pieces[0]
    steps = queries if pieces[0].shape[2] == 1 else 1
    runs = [torch.cat(pieces[i : i + steps], 2) for i in range(0, len(pieces), steps)]
    return torch.cat(runs)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which keys of B sequences are reweighted in which layers and heads; built once per prompt.

    Attributes
    ----------
    layers : dict of int to LayerPlan
        By layer, those with a gated head in this prompt and those that may have one in the next.
    idle : frozenset of int
        Those of ``layers`` without a gated head in this prompt.
    schedule : Schedule, optional
        What the flags of a decode step are; without it they are those of ``layers``.

    Examples
    --------
    >>> layer = LayerPlan(torch.zeros(1, 3, dtype=torch.uint8), None, (GateRun(Gate(), 1),))
    >>> plan = Plan({4: layer, 5: layer}, idle=frozenset({5}))
    >>> plan.plan_of(4) is layer, plan.plan_of(5)
    (True, None)
    >>> plan.reindexed(torch.tensor([0, 0])).layers[4].flags.shape
    torch.Size([2, 3])
    """

    layers: dict[int, LayerPlan]
    idle: frozenset[int] = frozenset()
    schedule: Schedule | None = None
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
        layers, gates = {}, None
        for layer, plan in self.layers.items():
            if gates is None:  # every layer's are the same
                each = [run.gate for run in plan.gates for _ in range(run.sequences)]
                gates = gate_runs([each[source] for source in sources.tolist()])
            heads = None if plan.heads is None else plan.heads[sources.to(plan.heads.device)]
            layers[layer] = LayerPlan(flags[plan.flags.device], heads, gates)
        schedule = None if self.schedule is None else self.schedule.reindexed(sources)
        return Plan(layers, self.idle, schedule)


class ScheduledPlan:
    """The plan of one forward call, with the flags that hold at its queries.

    Parameters
    ----------
    plan : Plan
        Of the answer.
    flags : uint8 [B, q, N]
        Of the call's queries.
    """

    observer: ClassVar[None] = None

    def __init__(self, plan: Plan, flags: Tensor) -> None:
        self.flags = flags
        self._plan = plan
        self._on: dict[torch.device, Tensor] = {}

    def plan_of(self, layer: int) -> LayerPlan | None:
        """The plan of a layer; None where it runs the model's own attention."""
        plan = self._plan.plan_of(layer)
        if plan is None:
            return None
        device = plan.flags.device
        if device not in self._on:
            flags = self.flags if self.flags.shape[1] > 1 else self.flags[:, 0]
            self._on[device] = flags.to(device)
        return plan._replace(flags=self._on[device])


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


def gate_runs(gates: Sequence[Gate]) -> tuple[GateRun, ...]:
    """The gates of B sequences as runs.

    Examples
    --------
    >>> [run.sequences for run in gate_runs([Gate(), Gate(), Gate(focus_weight=2.0)])]
    [2, 1]
    """
    return tuple(GateRun(gate, len(list(same))) for gate, same in itertools.groupby(gates))


def build_plan(
    flags: Tensor,
    gated: Sequence[tuple[Gate, Sequence[HeadIndex] | None]],
    layers: Sequence[int],
    devices: Sequence[torch.device],
    heads: int,
    schedule: Schedule | None = None,
) -> Plan | None:
    """Plan the decode steps of B sequences, on the layers' devices.

    Parameters
    ----------
    flags : uint8 [B, N]
        What :func:`key_flags` returns.
    gated : sequence of B (Gate, sequence of (layer, head) or None)
        Of each sequence, condition and weights of the reweighting, and the heads that it is of;
        None for all of them.
    layers : sequence of int
        The full-attention layers, as the model counts them.
    devices : sequence of torch.device
        Device of each of these layers.
    heads : int
        H, query heads of each layer.
    schedule : Schedule, optional
        Flags of each generated token, which stand for ``flags``.

    Returns
    -------
    Plan, optional
        None where no head would be reweighted.
    """
    order = {layer: position for position, layer in enumerate(layers)}
    allowed = torch.zeros(len(layers), len(gated), heads, dtype=torch.bool)
    changed = False
    for sequence, (gate, pairs) in enumerate(gated):
        if pairs is None:
            allowed[:, sequence] = True
        for layer, head in pairs or ():
            allowed[order[layer], sequence, head] = True
        changes = _changes(flags[sequence] if schedule is None else None, gate)
        changed = changed or (changes and bool(allowed[:, sequence].any()))
    if not changed:
        return None
    every = [pairs for _, pairs in gated] == [None] * len(
        gated
    )  # what is unchanged keeps weights of 1
    runs = gate_runs([gate for gate, _ in gated])
    # On the devices now: a compiled step must find its tensors there at every token.
    flags_on, allowed_on = {}, {}
    for device in set(devices):
        flags_on[device] = _growing(flags.to(device))
        allowed_on[device] = allowed.to(device)
    plans, idle = {}, set()
    for position, (layer, device) in enumerate(zip(layers, devices, strict=True)):
        own = None if every else allowed_on[device][position]
        plans[layer] = LayerPlan(flags_on[device], own, runs)
        if not every and not allowed[position].any():
            idle.add(layer)
    return Plan(plans, frozenset(idle), schedule)


def _changes(flags: Tensor | None, gate: Gate) -> bool:
    """Whether a gate changes anything where the keys of a sequence have these flags, if known."""
    if gate.focus_weight == gate.image_weight == 1.0:
        return False
    if flags is None:
        return True
    changed = FOCUS_FLAG if gate.image_weight == 1.0 else IMAGE_FLAG
    return bool((flags & changed).any())


def _growing(flags: Tensor) -> Tensor:
    """Flags whose length may change, so that one compiled step serves prompts of any length."""
    torch._dynamo.maybe_mark_dynamic(flags, 1)
    return flags
