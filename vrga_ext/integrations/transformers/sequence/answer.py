"""From a prompt that has been read to its answer: regions of every sample, and the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.plan import Plan, build_plan, key_flags
from vrga_ext.prompts import images
from vrga_ext.region import Region
from vrga_ext.schedule import Schedule, Timing
from vrga_ext.settings import Settings
from vrga_ext.steering import (
    QuestionStatistics,
    checked_region,
    empty_region,
    guided_region,
    select_region,
)

RegionHook = Callable[[int, Region], Region]


def answer_regions(
    state: SequenceState, fixed_grid: tuple[int, int] | None, hook: RegionHook | None
) -> list[Region]:
    """Heads and tokens of every sample, after the call with the prompt's end.

    Parameters
    ----------
    state
        Of the prompt, with the statistics of its question.
    fixed_grid
        Grid of a model whose pictures all have one size.
    hook
        Replaces a region by another one.

    Raises
    ------
    TypeError, ValueError
        The hook's region, or a head of the settings, does not fit the model.
    """
    if not state.question:
        return plain_regions(state)
    layers = tuple(sorted(state.question))
    statistics = [state.question[layer] for layer in layers]
    regions = []
    for sample, index in enumerate(range(0, len(state.ends), state.copies)):
        settings = state.settings[sample]
        found = _select(state, settings, index, layers, statistics, fixed_grid)
        if not settings.applied:
            found = replace(found, boosted=found.boosted[:0])
        elif len(found.image_positions):
            places = state.places[sample]
            boosted = None if places is None else places.positions[0]
            found = guided_region(found, boosted, settings.heads)
            if hook is not None:
                found = checked_region(hook(sample, found), found, state.image.shape[1])
        regions.append(found)
    return regions


def plain_regions(state: SequenceState) -> list[Region]:
    """One region without heads and tokens per sample, of a prompt that nothing is boosted for."""
    return [empty_region(end, (), 0) for end in state.ends[:: state.copies]]


def _select(
    state: SequenceState,
    settings: Settings,
    index: int,
    layers: tuple[int, ...],
    found: list[QuestionStatistics],
    fixed_grid: tuple[int, int] | None,
) -> Region:
    """Heads and tokens of the sample whose first sequence is ``index``."""
    config = settings.config
    axes = None if state.axes is None else state.axes[:, index, : state.image.shape[1]]
    positions, spans = images.image_spans(
        state.image[index], state.image_mask[index], axes, fixed_grid
    )
    if not spans:
        return empty_region(state.ends[index], layers, found[0].image_ratio.shape[1])
    over = state.attended if config.ratio_keys == "attended" else state.lengths
    return select_region(
        found,
        index,
        layers,
        positions,
        spans,
        state.ends[index],
        state.attended[index],
        over[index],
        config,
    )


def answer_plan(state: SequenceState, regions: list[Region], cache: Any) -> Plan | None:
    """What the decode steps of the answer reweight; None where nothing is.

    Parameters
    ----------
    state
        Of the prompt, with the statistics of its question.
    regions
        One per sample.
    cache
        The KV cache, whose room bounds the answer.
    """
    if not state.question:
        return None
    layers = sorted(state.question)
    statistics = [state.question[layer] for layer in layers]
    devices = [found.image_ratio.device for found in statistics]
    samples: list[int] = state.samples.tolist()
    flags = key_flags(regions, samples, state.image.shape[1])
    pairs = zip(state.settings, regions, strict=True)
    gated = [(own.gate, _gated_heads(own, region)) for own, region in pairs]
    return build_plan(
        flags,
        [gated[sample] for sample in samples],
        layers,
        devices,
        statistics[0].image_ratio.shape[1],
        _schedule(state, regions, flags, devices[0], cache) if state.prompt.is_guided else None,
    )


def _gated_heads(settings: Settings, region: Region) -> tuple[tuple[int, int], ...] | None:
    """Heads that a sample may reweight; None for all of them."""
    if not settings.applied:
        return ()
    chosen = settings.config.gate == "static" or settings.heads is not None
    return region.visual_heads if chosen else None


def _schedule(
    state: SequenceState, regions: list[Region], flags: Tensor, device: torch.device, cache: Any
) -> Schedule | None:
    """The schedule of all sequences, whose first phase has ``flags`` [B, N]; None without one."""
    samples, length = state.samples.tolist(), state.image.shape[1]
    places = [state.places[sample] for sample in samples]
    if not any(place is not None and place.is_timed for place in places):
        return None
    phases = 1 + max(len(place.timing.starts) for place in places if place is not None)
    stacked = flags[:, None].repeat(1, phases, 1)
    timings, inside = [], []
    for sequence, (sample, place) in enumerate(zip(samples, places, strict=True)):
        timings.append(Timing() if place is None else place.timing)
        inside.append(place is None or place.inside)
        for phase, positions in enumerate(() if place is None else place.positions[1:], 1):
            stacked[sequence, phase] = 0
            if positions is not None:
                then = replace(regions[sample], boosted=positions)
                stacked[sequence, phase] = key_flags([then], [0], length)[0]
    room = getattr(cache, "get_max_cache_shape", lambda: -1)()
    capacity = room - length if isinstance(room, int) and room > length else 0
    return Schedule(length, stacked.to(device), timings, inside, capacity)
