"""Pages, goals and comparisons of benchmark results, from invented times; interleaving."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from bench import conftest as bench_conftest
from bench import goals, rivals, timing
from bench.__main__ import app
from bench.compare import changes, differences
from bench.inputs import Case, Shape, make_inputs
from bench.operations import Operation
from bench.race import Settings, run_race
from bench.report import markdown
from bench.results import Report, Result, grouped

CASE_B = str(Case(goals.GPU_SHAPES["B"], "bfloat16"))
CPU_CASE = "B1 28/4 M4096 D128 float32"
BENCH = Path(timing.__file__).parent
MACHINE = {"CPU", "SIMD", "Python", "torch", "transformers", "vrga_ext", "commit"}
GPU_TIMES = {  # us
    rivals.DYNAMIC: 36.0,
    rivals.STATIC: 35.0,
    rivals.OFF: 35.5,
    "SDPA FLASH": 60.0,
    "SDPA cuDNN": 40.0,
    rivals.STORED: 500.0,
}
CPU_TIMES = {rivals.DYNAMIC: 100.0, rivals.PACKED: 150.0, rivals.STORED: 290.0, rivals.LOOP: 4500.0}


def benchmark(op, case, rival, us, **extra):
    info = {"op": op, "case": case, "rival": rival, "device": "cpu", "bytes": 10**6} | extra
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


def verdicts(path):
    found = goals.goals(grouped(Report.load(path).results))
    return {goal.name: (round(goal.value, 3), goal.verdict) for goal in found}


def test_goals_of_a_cpu(tmp_path):
    rows = [
        benchmark("row_statistics", CPU_CASE, rivals.ROWS, 60.0),
        benchmark("row_statistics", CPU_CASE, rivals.DYNAMIC, 100.0),
    ]
    assert verdicts(write(tmp_path / "r.json", decode() + rows)) == {
        f"{rivals.PACKED} / {rivals.DYNAMIC}": (1.5, "met"),
        f"{rivals.STORED} / {rivals.DYNAMIC}": (2.9, "missed"),
        f"{rivals.LOOP} / {rivals.DYNAMIC}": (45.0, "stretch"),
        "row_statistics / decode": (0.6, "met"),
    }


def test_goals_of_a_gpu(tmp_path):
    shape = decode(GPU_TIMES, CASE_B, device="cuda", bytes=134_217_728)
    for result in shape:
        result["extra_info"]["copy_gbs"] = 4300.0
    assert verdicts(write(tmp_path / "r.json", shape)) == {
        "share of copy bandwidth": (0.867, "met"),
        f"{rivals.DYNAMIC} / {rivals.OFF}": (1.014, "met"),
        f"{rivals.STATIC} / {rivals.OFF}": (0.986, "stretch"),
        f"best SDPA / {rivals.DYNAMIC}": (1.111, "met"),
        f"{rivals.STORED} / {rivals.DYNAMIC}": (13.889, "stretch"),
    }


def test_shapes_of_each_goal_on_a_gpu():
    names = [*GPU_TIMES, "FlashInfer single", rivals.ROWS]
    extra = {"device": "cuda", "bytes": 10**6, "copy_gbs": 4300.0}
    shapes = {str(Case(shape, "bfloat16")): name for name, shape in goals.GPU_SHAPES.items()}
    results = [
        Result(op, case, name, 1e-5, extra)
        for op in ("decode_attention", "row_statistics")
        for case in [*shapes, "another shape"]
        for name in names
    ]
    covered = {}
    for goal in goals.goals(grouped(results)):
        covered[goal.name] = covered.get(goal.name, "") + shapes[goal.where]
    assert covered == {
        "time, us": "A",
        "share of copy bandwidth": "BCD",
        f"{rivals.DYNAMIC} / {rivals.OFF}": "ABCD",
        f"{rivals.STATIC} / {rivals.OFF}": "ABCD",
        f"best SDPA / {rivals.DYNAMIC}": "ABCD",
        f"best FlashInfer / {rivals.DYNAMIC}": "ABCD",
        f"{rivals.STORED} / {rivals.DYNAMIC}": "AB",
        "row_statistics / decode": "BCD",
    }
    sizes = {name: Case(shape, "bfloat16").kv_bytes for name, shape in goals.GPU_SHAPES.items()}
    assert [name for name, size in sizes.items() if size >= 64 << 20] == list("BCD")


def test_goals_of_a_model(tmp_path):
    steps = {rivals.NOT_ENABLED: 100.0, rivals.ADAPTER: 101.0, rivals.DYNAMIC: 104.0}
    model = [benchmark("decode step", "some model", name, us) for name, us in steps.items()]
    peaks = {rivals.NOT_ENABLED: 1000, rivals.DYNAMIC: 1020}
    model += [
        benchmark("peak memory", "some model", name, 1.0, peak_bytes=size)
        for name, size in peaks.items()
    ]
    assert list(verdicts(write(tmp_path / "r.json", model)).values()) == [
        (1.01, "stretch"),
        (1.04, "met"),
        (1.02, "missed"),
    ]


def test_report_writes_a_page_and_a_figure(tmp_path):
    sweep = [
        benchmark("scaling", f"keys = {x}", rivals.DYNAMIC, x / 4, sweep="keys", x=x)
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
    assert "| 2.9 | ≥ 3 | ≥ 4 | missed |" in page
    assert "FlashInfer: No module named" in page
    assert "](some-cpu.png)" in page
    assert (tmp_path / "out" / "some-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_report_without_anything_to_draw(tmp_path):
    result = write(tmp_path / "r.json", [benchmark("generate", "m", rivals.NOT_ENABLED, 5.0)])
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


def test_a_note_is_reported_and_not_compared(tmp_path):
    first = write(tmp_path / "first.json", decode())
    second = write(tmp_path / "second.json", decode(case="another case"))
    noted = tmp_path / "noted.json"
    for parts, note in (([first], "a shared machine"), ([noted, second], "peaks of b")):
        arguments = ["join", *map(str, parts), "--out", str(noted), "--note", note]
        run = CliRunner().invoke(app, arguments)
        assert run.exit_code == 0, run.output
    assert "- note: a shared machine; peaks of b" in markdown(Report.load(noted))
    run = CliRunner().invoke(app, ["compare", str(first), str(noted)])
    assert run.exit_code == 0
    assert "not the same" not in run.output


@pytest.mark.parametrize(
    ("factor", "threshold", "code"), [(1.05, 0.1, 0), (1.2, 0.1, 1), (1.2, 0.3, 0), (0.5, 0.0, 0)]
)
def test_compare_fails_on_a_regression(tmp_path, factor, threshold, code):
    old = write(tmp_path / "old.json", decode())
    slower = CPU_TIMES | {rivals.DYNAMIC: factor * CPU_TIMES[rivals.DYNAMIC]}
    new = write(tmp_path / "new.json", decode(slower), commit="b")
    arguments = ["compare", str(old), str(new), "--threshold", str(threshold)]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == code, run.output
    assert f"{code} of 4 figures of both files worse" in run.output
    assert "not the same" not in run.output


def test_a_peer_that_got_slower_is_no_regression(tmp_path):
    old = Report.load(write(tmp_path / "old.json", decode()))
    slower = CPU_TIMES | {rivals.PACKED: 300.0}
    new = Report.load(write(tmp_path / "new.json", decode(slower)))
    assert [change.ratio for change in changes(old, new)] == [2.0, 1.0, 1.0, 1.0]
    assert not any(change.regressed(0.1) for change in changes(old, new))


def test_the_adapter_alone_is_ours(tmp_path):
    steps = [
        [benchmark("decode step", "m", name, us) for name in (rivals.NOT_ENABLED, rivals.ADAPTER)]
        for us in (101.0, 400.0)
    ]
    old, new = (write(tmp_path / f"{i}.json", step) for i, step in enumerate(steps))
    run = CliRunner().invoke(app, ["compare", str(old), str(new)])
    assert run.exit_code == 1
    assert "1 of 2 figures of both files worse" in run.output


@pytest.mark.parametrize(("lost", "code"), [(rivals.DYNAMIC, 1), (rivals.LOOP, 0)])
def test_compare_fails_where_a_figure_of_ours_is_missing(tmp_path, lost, code):
    old = write(tmp_path / "old.json", decode())
    rest = {name: us for name, us in CPU_TIMES.items() if name != lost}
    new = write(tmp_path / "new.json", decode(rest))
    run = CliRunner().invoke(app, ["compare", str(old), str(new)])
    assert run.exit_code == code, run.output
    assert f"missing from the new file: decode_attention, {CPU_CASE}, {lost}\n" in run.output
    assert f"{code} of ours missing" in run.output
    assert CliRunner().invoke(app, ["compare", str(new), str(old)]).exit_code == 0


@pytest.mark.parametrize(("us", "peak", "code"), [(900.0, 1000, 0), (100.0, 1200, 1)])
def test_compare_takes_the_bytes_of_a_peak(tmp_path, us, peak, code):
    old, new = (
        write(
            tmp_path / f"{name}.json",
            [benchmark("peak memory", "m", rivals.STATIC, seconds, peak_bytes=1000**2 * size)],
        )
        for name, seconds, size in (("old", 100.0, 1000), ("new", us, peak))
    )
    run = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["compare", str(old), str(new)])
    assert run.exit_code == code, run.output
    assert "1000.0 MB" in run.output
    assert f"{peak}.0 MB" in run.output


def test_compare_notes_another_machine(tmp_path):
    old = write(tmp_path / "old.json", decode())
    new = write(tmp_path / "new.json", decode(), torch="2.14.0", commit="b")
    run = CliRunner().invoke(app, ["compare", str(old), str(new)])
    assert run.exit_code == 0
    assert "not the same machine or versions: torch: 2.13.0 -> 2.14.0" in run.output
    assert differences({"GPU": "A"}, {}) == ["GPU: A -> unknown"]


def test_files_that_cannot_be_compared(tmp_path):
    old = write(tmp_path / "old.json", decode())
    other = write(tmp_path / "other.json", decode(case="another case"))
    run = CliRunner().invoke(app, ["compare", str(old), str(other)])
    assert run.exit_code == 2
    assert "results in common" in run.output
    (tmp_path / "no.json").write_text("{}")
    run = CliRunner().invoke(app, ["compare", str(old), str(tmp_path / "no.json")])
    assert run.exit_code == 2
    assert "wanted a file of `pytest bench --benchmark-json`" in run.output


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
    good = write(tmp_path / "good.json", decode())
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
        ("compare", str(good), odd),
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
    ("rivals_of_a_case", "read"),
    [
        (rivals.DECODE, lambda x: x.key.nbytes + x.value.nbytes),
        (rivals.ROW_STATISTICS, lambda x: x.key.nbytes),
        (rivals.REWEIGHTED_SOFTMAX, lambda x: x.scores.nbytes),
    ],
)
def test_what_is_read_exceeds_the_last_cache(monkeypatch, rivals_of_a_case, read):
    cache = 1 << 16
    monkeypatch.setattr(timing, "_last_cache", lambda device: cache)
    operation = Operation(Case(Shape(1, 4, 2, 40, 16), "float32"), rivals_of_a_case, Settings())
    one = read(operation._inputs[0])
    assert 0 <= one * len(operation._inputs) - 3 * cache < one
    assert operation.enter(rivals.DYNAMIC)["error"] < 1e-5


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


def test_a_wrong_rival_is_not_timed(monkeypatch):
    case = Case(Shape(1, 4, 2, 40, 16), "float32")
    wrong = rivals.Rival(lambda case: lambda x: 1.01 * x.query, "plain")
    refusing = rivals.Rival(lambda case: lambda x: x.query @ x.query, "plain")
    entered = {rivals.OFF: rivals.DECODE[rivals.OFF], "wrong": wrong, "refusing": refusing}
    monkeypatch.setattr(timing, "_COPY_BYTES", {"cpu": 1 << 10})
    monkeypatch.setattr(timing, "_CACHES", {"cpu": 0})
    race = run_race(lambda: Operation(case, entered, Settings()), list(entered), Settings(), 3)
    assert {name: len(times) for name, times in race.times.items()} == {rivals.OFF: 3}
    assert "against fp64" in str(race.wrong["wrong"])
    assert list(race.absent) == ["refusing"]
    assert race.copy_gbs > 0


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
def test_every_benchmark_is_a_race(path):
    """Only a race's results can be read back and compared."""
    text = path.read_text()
    assert text.count("\n@pytest.mark.race(cases=") == text.count("\ndef test_") > 0
