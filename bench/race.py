"""One race: every rival of a case is checked, then all are timed together."""

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
    max_seconds: float = 60.0  # per race


class Contest(Protocol):
    """What a test module provides: the inputs of one case."""

    def enter(self, name: str) -> dict[str, Any]:
        """Run a rival once and check it; returns what is to be published beside its time.

        Raises ``Unavailable`` where it cannot run here, AssertionError where it is wrong.
        """

    def sample(self, name: str) -> Sample:
        """The timed call of a rival that was entered."""


class Compete(Protocol):
    """The fixture: puts a test's rival into the race of its case."""

    def __call__(
        self, op: str, prepare: Callable[[], Contest], rounds: int | None = None
    ) -> None: ...


class Unavailable(Exception):
    """A rival cannot run here; the message says why."""


@dataclass(frozen=True)
class Race:
    """The outcome."""

    times: dict[str, list[float]]  # rival -> seconds per call, one per round
    extra: dict[str, dict[str, Any]]
    absent: dict[str, str] = field(default_factory=dict)  # rival -> why it could not run
    wrong: dict[str, BaseException] = field(default_factory=dict)
    copy_gbs: float | None = None  # bytes read plus written per second, /1e9


def run_race(
    prepare: Callable[[], Contest], names: Sequence[str], settings: Settings, rounds: int
) -> Race:
    """Enter all rivals, then time those that are right, together with a large copy."""
    gc.collect()  # models and graphs of the race before
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    contest = prepare()
    race = Race({}, {})
    for name in names:
        try:
            race.extra[name] = contest.enter(name)
        except Unavailable as reason:
            race.absent[name] = str(reason)
        except Exception as error:  # reported by the test of this rival
            race.wrong[name] = error
    if not settings.timed:
        return race
    samples = {name: contest.sample(name) for name in race.extra}
    samples[COPY] = copy_sample(settings.device)
    times = interleave(samples, rounds, settings.max_seconds)
    copies = sorted(times.pop(COPY))
    race.times.update(times)
    return Race(race.times, race.extra, race.absent, race.wrong, 1e-9 / copies[len(copies) // 2])
