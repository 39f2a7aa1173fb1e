"""``pytest bench --benchmark-only``: options, and how interleaved times reach pytest-benchmark.

All implementations of a case are timed together by the first of its tests (``bench/timing.py``);
each test then replays its own rounds on a clock that stands still otherwise, so that the statistics
of pytest-benchmark are those of the interleaved rounds.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console

from bench.case import Measure, Outcome, PreparedCase, Settings, time_case
from bench.machine import machine
from bench.report import summary_tables
from bench.results import Result

_SETTINGS = pytest.StashKey[Settings]()
_RESULTS = pytest.StashKey[list[Result]]()
_ABSENT = pytest.StashKey[dict[str, str]]()


class _Clock:
    """Moves only while recorded durations are replayed."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


_CLOCK = _Clock()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vrga")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    group.addoption("--threads", type=int, help="CPU threads; default: torch's own")
    group.addoption("--rounds", type=int, default=40, help="rounds of a case; default: 40")
    group.addoption(
        "--max-seconds",
        type=float,
        default=60,
        help="a case ends after so long, but not before three rounds; default: 60",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "measured(cases, implementations): what a run with given settings measures"
    )
    config.option.benchmark_quiet = True  # one table, ours
    if config.option.threads:
        torch.set_num_threads(config.option.threads)
    if config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: wanted a CUDA GPU, got none")
    config.stash[_SETTINGS] = Settings(
        device=config.option.device,
        smoke=os.environ.get("VRGA_BENCH_SMOKE", "0") != "0",
        timed=not config.option.benchmark_disable,
        rounds=config.option.rounds,
        max_seconds=config.option.max_seconds,
    )
    config.stash[_RESULTS] = []
    config.stash[_ABSENT] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("measured")
    if marker is None:
        return
    settings = metafunc.config.stash[_SETTINGS]
    metafunc.parametrize("case", marker.kwargs["cases"](settings), ids=str, scope="session")
    metafunc.parametrize("implementation", marker.kwargs["implementations"](settings))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("measured"):
            item.add_marker(pytest.mark.benchmark(timer=_CLOCK.read))


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    return request.config.stash[_SETTINGS]


@pytest.fixture(autouse=True, scope="session")
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def outcomes() -> dict[Any, Outcome]:
    """Of the last case only: inputs and graphs of others are gone."""
    return {}


@pytest.fixture
def measure(
    request: pytest.FixtureRequest,
    benchmark: BenchmarkFixture,
    settings: Settings,
    outcomes: dict[Any, Outcome],
) -> Measure:
    """``measure(op, prepare)``: the times of this test's implementation in its case."""

    def run(op: str, prepare: Callable[[], PreparedCase], rounds: int | None = None) -> None:
        case, name = (request.node.callspec.params[key] for key in ("case", "implementation"))
        mine = request.node.originalname
        if (mine, case) not in outcomes:
            outcomes.clear()
            names = [
                str(item.callspec.params["implementation"])
                for item in request.session.items
                if isinstance(item, pytest.Function)
                and item.originalname == mine
                and item.callspec.params["case"] == case
            ]
            outcomes[mine, case] = time_case(prepare, names, settings, rounds or settings.rounds)
        outcome = outcomes[mine, case]
        if name in outcome.wrong:
            raise outcome.wrong[name]
        if name in outcome.absent:
            request.config.stash[_ABSENT][f"{op}, {case}: {name}"] = outcome.absent[name]
            pytest.skip(outcome.absent[name])
        if not settings.timed:
            benchmark.pedantic(lambda: None)
            return
        times = outcome.times[name]
        benchmark.group = f"{op}, {case}"
        benchmark.extra_info |= {"op": op, "case": str(case), "implementation": name}
        benchmark.extra_info |= {"copy_gbs": outcome.copy_gbs} | outcome.extra[name]
        rounds_left = iter(times)
        benchmark.pedantic(lambda: _CLOCK.advance(next(rounds_left)), rounds=len(times))
        request.config.stash[_RESULTS].append(
            Result.of(benchmark.extra_info, statistics.median(times))
        )

    return run


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    for name in ("node", "release"):  # names of the host and of its kernel
        machine_info.pop(name, None)
    machine_info.get("cpu", {}).pop("flags", None)
    machine_info["vrga"] = machine(config.stash[_SETTINGS].device)


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    for name in ("project", "branch"):  # names of the folder and of what is checked out there
        commit_info.pop(name, None)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["absent"] = config.stash[_ABSENT]
    for benchmark in output_json["benchmarks"]:
        del benchmark["stats"]["data"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[_RESULTS]
    if not results:
        return
    console = Console(width=None if terminalreporter.isatty else 120)
    for table in summary_tables(results):
        console.print(table)
