"""Pages of benchmark results, from invented times; interleaving."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from bench import conftest as bench_conftest
from bench import implementations, timing
from bench.__main__ import app
from bench.case import Settings, time_case
from bench.inputs import Case, Shape, make_inputs
from bench.operations import Operation
from bench.report import markdown
from bench.results import Report

CPU_CASE = "B1 28/4 M4096 D128 float32"
BENCH = Path(timing.__file__).parent
MACHINE = {"CPU", "SIMD", "Python", "torch", "transformers", "vrga_ext", "commit"}
CPU_TIMES = {
    implementations.DYNAMIC: 100.0,
    implementations.PACKED: 150.0,
    implementations.STORED: 290.0,
    implementations.LOOP: 4500.0,
}


def benchmark(op, case, implementation, us, **extra):
    info = {
        "op": op,
        "case": case,
        "implementation": implementation,
        "device": "cpu",
        "bytes": 10**6,
    } | extra
    return {"extra_info": info | {"copy_gbs": 20.0}, "stats": {"median": us / 1e6}}


def write(path, benchmarks, absent=(), **machine):
    content = {
        "benchmarks": benchmarks,
        "machine_info": {"vrga": {"CPU": "Some CPU", "torch": "2.13.0", "commit": "a"} | machine},
        "absent": dict(absent),
    }
    path.write_text(json.dumps(content))
    return path


def decode(times=CPU_TIMES, case=CPU_CASE, **extra):
    return [benchmark("decode_attention", case, name, us, **extra) for name, us in times.items()]


def test_report_writes_a_page_and_a_figure(tmp_path):
    sweep = [
        benchmark("scaling", f"keys = {x}", implementations.DYNAMIC, x / 4, sweep="keys", x=x)
        for x in (512, 16384)
    ]
    absent = {f"decode_attention, {CPU_CASE}: FlashInfer": "No module named 'flashinfer'"}
    result = write(tmp_path / "some-cpu.json", decode() + sweep, absent)
    run = CliRunner().invoke(app, ["report", str(result), "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    page = (tmp_path / "out" / "some-cpu.md").read_text()
    assert "- CPU: Some CPU" in page
    assert f"| {CPU_CASE} | vrga dynamic (base) | 100.0 | 10.0 | 0.50 | 1 |" in page
    assert f"| {CPU_CASE} | per-head loop | 4500.0 | 0.2 | 0.01 | 45 |" in page
    assert "FlashInfer: No module named" in page
    assert "](some-cpu.png)" in page
    assert (tmp_path / "out" / "some-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_report_without_anything_to_draw(tmp_path):
    result = write(
        tmp_path / "r.json", [benchmark("generate", "m", implementations.NOT_ENABLED, 5.0)]
    )
    run = CliRunner().invoke(app, ["report", str(result), "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r.md"]


def test_parts_of_a_suite_are_joined(tmp_path):
    first = write(tmp_path / "first.json", decode(), {"a": "no a"})
    second = write(tmp_path / "second.json", decode(case="another case"), {"b": "no b"})
    out = tmp_path / "joined.json"
    run = CliRunner().invoke(app, ["join", str(first), str(second), "--out", str(out)])
    assert run.exit_code == 0, run.output
    joined = Report.load(out)
    assert joined.results == Report.load(first).results + Report.load(second).results
    assert joined.absent == {"a": "no a", "b": "no b"}
    elsewhere = write(tmp_path / "elsewhere.json", decode(case="a third"), torch="2.14.0")
    for parts, message in (((first, first), "already"), ((first, elsewhere), "another machine")):
        run = CliRunner().invoke(app, ["join", *map(str, parts), "--out", str(out)])
        assert run.exit_code == 2
        assert message in run.output


def test_a_note_is_reported(tmp_path):
    first = write(tmp_path / "first.json", decode())
    second = write(tmp_path / "second.json", decode(case="another case"))
    noted = tmp_path / "noted.json"
    for parts, note in (([first], "a shared machine"), ([noted, second], "peaks of b")):
        arguments = ["join", *map(str, parts), "--out", str(noted), "--note", note]
        run = CliRunner().invoke(app, arguments)
        assert run.exit_code == 0, run.output
    assert "- note: a shared machine; peaks of b" in markdown(Report.load(noted))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("median", 0.0, "wanted median above 0, got 0.0"),
        ("device", None, "wanted device cpu or cuda, got None"),
        ("device", ..., "'device'"),
        ("copy_gbs", None, "wanted copy_gbs above 0, got None"),
        ("peak_bytes", 0, "wanted peak_bytes above 0, got 0"),
    ],
)
def test_odd_files_are_named_in_one_line(tmp_path, field, value, message):
    results = decode(peak_bytes=1)
    place = results[0]["stats" if field == "median" else "extra_info"]
    place[field] = value
    if value is ...:
        del place[field]
    odd = str(write(tmp_path / "odd.json", results))
    out = str(tmp_path / "out")
    for arguments in (
        ("report", odd, "--out", out),
        ("join", odd, "--out", out),
    ):
        one_line(arguments, message)


def test_folders_that_cannot_be_written_to_are_named_in_one_line(tmp_path):
    good = str(write(tmp_path / "good.json", decode()))
    one_line(("join", good, "--out", str(tmp_path / "no" / "joined.json")), "No such file")
    one_line(("report", good, "--out", good), "File exists")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff")
    one_line(("report", str(binary), "--out", str(tmp_path)), "binary.json: wanted a file of")


def one_line(arguments, message):
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 2, run.output
    assert message in run.output
    assert run.output.count("\n") == 1


def test_rounds_are_interleaved_and_the_warm_up_is_not_counted():
    calls = []

    def sample(name):
        def time(turn):
            calls.append((turn, name))
            return float(turn)

        return time

    times = timing.interleave({"a": sample("a"), "b": sample("b")}, rounds=4, max_seconds=60)
    assert times == {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 2.0, 3.0, 4.0]}
    assert [turn for turn, _ in calls] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    slow = timing.interleave({"a": sample("a")}, rounds=1000, max_seconds=0)
    assert len(slow["a"]) == timing.LEAST_ROUNDS


@pytest.mark.parametrize(
    ("implementations_of_a_case", "read"),
    [
        (implementations.DECODE, lambda x: x.key.nbytes + x.value.nbytes),
        (implementations.ROW_STATISTICS, lambda x: x.key.nbytes),
        (implementations.REWEIGHTED_SOFTMAX, lambda x: x.scores.nbytes),
    ],
)
def test_what_is_read_exceeds_the_last_cache(monkeypatch, implementations_of_a_case, read):
    cache = 1 << 16
    monkeypatch.setattr(timing, "_last_cache", lambda device: cache)
    operation = Operation(
        Case(Shape(1, 4, 2, 40, 16), "float32"), implementations_of_a_case, Settings()
    )
    one = read(operation._inputs[0])
    assert 0 <= one * len(operation._inputs) - 3 * cache < one
    assert operation.check(implementations.DYNAMIC)["error"] < 1e-5


def test_a_turn_on_a_cpu_begins_untimed(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(timing, "_TURN_SECONDS", 1.0)
    costs = iter([0.75, 0.5] + [0.25] * 4)  # slow calls until the turn's first half is over

    def run(x):
        clock.now += next(costs)

    assert timing.sample_of(run, deque([None]), "cpu")(0) == 0.25
    assert next(costs, None) is None


def test_what_waits_for_the_host_takes_few_calls_a_round(monkeypatch):
    event = SimpleNamespace(
        record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 32.0
    )
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    calls = []
    sample = timing.sample_of(calls.append, deque(range(40)), "cuda", host_reads=True)
    assert sample(0) == pytest.approx(32e-3 / 16)
    assert calls == list(range(16))


def test_a_wrong_implementation_is_not_timed(monkeypatch):
    case = Case(Shape(1, 4, 2, 40, 16), "float32")
    wrong = implementations.Implementation(lambda case: lambda x: 1.01 * x.query, "plain")
    refusing = implementations.Implementation(lambda case: lambda x: x.query @ x.query, "plain")
    checked = {
        implementations.OFF: implementations.DECODE[implementations.OFF],
        "wrong": wrong,
        "refusing": refusing,
    }
    monkeypatch.setattr(timing, "_COPY_BYTES", {"cpu": 1 << 10})
    monkeypatch.setattr(timing, "_CACHES", {"cpu": 0})
    outcome = time_case(lambda: Operation(case, checked, Settings()), list(checked), Settings(), 3)
    assert {name: len(times) for name, times in outcome.times.items()} == {implementations.OFF: 3}
    assert "against fp64" in str(outcome.wrong["wrong"])
    assert list(outcome.absent) == ["refusing"]
    assert outcome.copy_gbs > 0


def test_shares_of_image_and_boosted_keys():
    case = Case(Shape(2, 2, 1, 1000, 8), "float32", image_share=0.4, focus_share=0.25)
    for contiguous in (False, True):
        x = make_inputs(Case(**(vars(case) | {"contiguous": contiguous})), "cpu")
        assert x.image.sum(-1).unique().tolist() == [400]
        assert x.focus.sum(-1).unique().tolist() == [100]
        assert not (x.focus & ~x.image).any()
        edges = (x.focus[0, 0, 0].int().diff() != 0).sum().item()
        assert (edges == 2) == contiguous
    assert torch.equal(x.bias != 0, x.focus)


def test_what_identifies_the_host_is_dropped():
    info = {"node": "host", "release": "6.1-host", "cpu": {"flags": ["avx2"]}, "system": "Linux"}
    config = SimpleNamespace(stash={bench_conftest._SETTINGS: Settings()})
    bench_conftest.pytest_benchmark_update_machine_info(config, info)
    vrga = info.pop("vrga")
    assert info == {"cpu": {}, "system": "Linux"}
    assert set(vrga) == MACHINE
    commit = {"id": "a", "dirty": False, "project": "folder", "branch": "mine"}
    bench_conftest.pytest_benchmark_update_commit_info(commit)
    assert commit == {"id": "a", "dirty": False}


@pytest.mark.parametrize(
    "path", sorted((BENCH / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_results_hold_what_a_run_writes(path):
    """Names and versions as the machine gives them, none of the host; the rest is a note."""
    content = json.loads(path.read_text())
    info = content["machine_info"]
    assert not info.keys() & {"node", "release"}
    assert not content["commit_info"].keys() & {"project", "branch"}
    vrga = info["vrga"]
    assert vrga.keys() <= MACHINE | {"GPU", "driver", "CUDA of the kernels"}
    assert vrga["CPU"].rpartition(", ")[0] == info["cpu"]["brand_raw"]
    assert len(vrga["commit"].split()) == 1


@pytest.mark.parametrize("path", sorted(BENCH.glob("test_*.py")), ids=lambda p: p.stem)
def test_every_benchmark_is_measured(path):
    """Only a outcome's results can be read back and compared."""
    text = path.read_text()
    assert text.count("\n@pytest.mark.measured(cases=") == text.count("\ndef test_") > 0
