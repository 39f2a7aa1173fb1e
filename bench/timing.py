"""Interleaved timing: all implementations of a case take turns on the same machine.

A round times every implementation once, in random order; reports show medians over rounds. Calls
rotate through sets of inputs that together exceed the last cache, as the layers of a model do. On a
CPU the turn of an implementation begins untimed: the one before has left its threads asleep and the
caches full of its own data, much of it still to be written to memory. On a GPU a round replays a
CUDA graph with calls on all sets of inputs in turn.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

Sample = Callable[[int], float]  # round -> seconds per call
T = TypeVar("T")

COPY = "copy"
LEAST_ROUNDS = 3
WARM_UP = 1
_CACHES = {"cpu": 3, "cuda": 5}  # sets of inputs exceed the last cache this many times
_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
_TURN_SECONDS = 0.01  # of a turn on a CPU, untimed and then timed, at least one call each
_MEMORY_SHARE = 0.5  # of a GPU, for rotated inputs
_GRAPH_CALLS = 16  # at least, so that the start of a graph does not show


def interleave(
    samples: Mapping[str, Sample], rounds: int, max_seconds: float
) -> dict[str, list[float]]:
    """Seconds per call of every sample, in rounds of random order.

    Stops early after ``max_seconds``, but not before three rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in samples}
    order = random.Random(0)
    end = math.inf
    for turn in range(-WARM_UP, rounds):
        if turn == 0:
            end = time.perf_counter() + max_seconds
        if turn >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name in order.sample(list(samples), len(samples)):
            seconds = samples[name](turn + WARM_UP)
            if turn >= 0:
                times[name].append(seconds)
    return times


def sets_of_inputs(read_bytes: int, held_bytes: int, device: str) -> int:
    """How many sets of inputs exceed the last cache.

    Parameters
    ----------
    read_bytes
        What a call reads of a set at least: other inputs beside it take no room in the cache.
    held_bytes
        What a set takes of the memory.
    """
    wanted = math.ceil(_CACHES[device] * _last_cache(device) / read_bytes)
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        wanted = min(wanted, int(_MEMORY_SHARE * total / held_bytes))
    return max(2, wanted)


def sample_of(
    run: Callable[[T], Any], inputs: deque[T], device: str, host_reads: bool = False
) -> Sample:
    """Times calls of ``run``; one that reads results on the host cannot be in a CUDA graph.

    The implementations of a case share ``inputs``, and every call on a CPU takes the next of them,
    so that no call finds in the cache what the one before has read.
    """
    if device == "cpu":
        return _cpu_sample(run, inputs)
    return _cuda_sample(run, list(inputs), graph=not host_reads)


def copy_sample(device: str) -> Sample:
    """Seconds per byte moved (read or written) of a large copy.

    Not in a CUDA graph, where a copy may run on a copy engine: slower than the multiprocessors'.
    """
    source = torch.zeros(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel()
    sample = sample_of(target.copy_, deque([source]), device, host_reads=True)
    return lambda turn: sample(turn) / moved


def synchronize(device: str) -> None:
    """Wait for what was started."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """Time of one call, from idle to idle."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def _cpu_sample(run: Callable[[T], Any], inputs: deque[T]) -> Sample:
    def mean_of_calls() -> float:
        calls, start = 0, time.perf_counter()
        while True:
            run(inputs[0])
            inputs.rotate(-1)
            calls += 1
            seconds = time.perf_counter() - start
            if seconds >= _TURN_SECONDS:
                return seconds / calls

    def sample(turn: int) -> float:
        mean_of_calls()
        return mean_of_calls()

    return sample


def _cuda_sample(run: Callable[[T], Any], inputs: list[T], graph: bool) -> Sample:
    if not graph:  # slow; the other implementations' turns empty the cache between rounds
        inputs = inputs[:_GRAPH_CALLS]
    rotations = math.ceil(_GRAPH_CALLS / len(inputs)) if graph else 1

    def call_all() -> None:
        for chosen in inputs * rotations:
            run(chosen)

    call = _captured(call_all).replay if graph else call_all

    def sample(turn: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / len(inputs) / rotations

    return sample


def _captured(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _last_cache(device: str) -> int:
    """Bytes of the last cache level."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(s.read_text().strip().removesuffix("K")) for s in sizes), default=1 << 15) << 10
