"""One case: every implementation is checked against the reference, then all are timed together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from bench.timing import COPY, Sample, copy_sample, interleave


@dataclass(frozen=True)
class Settings:
    """How a run is made; from the command line and the environment (``bench/conftest.py``)."""

    device: str = "cpu"
    smoke: bool = False
    timed: bool = True
    rounds: int = 40
    max_seconds: float = 60.0  # per case


class PreparedCase(Protocol):
    """What a test module provides: the inputs of one case."""

    def check(self, name: str) -> dict[str, Any]:
        """Run an implementation once and check it; returns what is to be published beside its time.

        Raises ``Unavailable`` where it cannot run here, AssertionError where it is wrong.
        """

    def sample(self, name: str) -> Sample:
        """The timed call of an implementation that was checked."""


class Measure(Protocol):
    """The fixture: times a test's implementation, together with the others of its case."""

    def __call__(
        self, op: str, prepare: Callable[[], PreparedCase], rounds: int | None = None
    ) -> None: ...


class Unavailable(Exception):
    """An implementation cannot run here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    times: dict[str, list[float]]  # implementation -> seconds per call, one per round
    extra: dict[str, dict[str, Any]]
    absent: dict[str, str] = field(default_factory=dict)  # implementation -> why it could not run
    wrong: dict[str, BaseException] = field(default_factory=dict)
    copy_gbs: float | None = None  # bytes read plus written per second, /1e9


def time_case(
    prepare: Callable[[], PreparedCase], names: Sequence[str], settings: Settings, rounds: int
) -> Outcome:
    """Check all implementations, then time those that are right, together with a large copy."""
    gc.collect()  # models and graphs of the case before
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    prepared = prepare()
    outcome = Outcome({}, {})
    for name in names:
        try:
            outcome.extra[name] = prepared.check(name)
        except Unavailable as reason:
            outcome.absent[name] = str(reason)
        except Exception as error:  # reported by the test of this implementation
            outcome.wrong[name] = error
    if not settings.timed:
        return outcome
    samples = {name: prepared.sample(name) for name in outcome.extra}
    samples[COPY] = copy_sample(settings.device)
    times = interleave(samples, rounds, settings.max_seconds)
    copies = sorted(times.pop(COPY))
    outcome.times.update(times)
    return Outcome(
        outcome.times, outcome.extra, outcome.absent, outcome.wrong, 1e-9 / copies[len(copies) // 2]
    )
