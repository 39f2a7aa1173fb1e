"""Files that `python -m bench` reads and writes: foreign ones are named, none is written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.__main__ import RESULTS, app
from bench.report import markdown
from bench.results import Report

STORED = json.loads((RESULTS / "cpu-amd-epyc-zen3.json").read_text(encoding="utf-8"))
SMALL = STORED | {"benchmarks": STORED["benchmarks"][:12] + STORED["benchmarks"][-6:]}


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(SMALL), encoding="utf-8")
    return path


def run(*arguments, charset="utf-8"):
    return CliRunner(charset=charset).invoke(app, [str(argument) for argument in arguments])


def test_no_output_takes_the_place_of_an_input(results, tmp_path):
    page = results.rename(tmp_path / "results.md")
    before = page.read_text()
    for folder in (tmp_path, tmp_path / "inner" / ".."):
        found = run("report", page, "--out", folder)
        assert found.exit_code == 2
        assert "page: wanted another place than RESULT" in found.stderr
    assert page.read_text() == before
    assert list(tmp_path.iterdir()) == [page]


def test_interrupted_writing_leaves_what_was_there(results, tmp_path, monkeypatch):
    joined = tmp_path / "joined.json"
    joined.write_text("before")

    def interrupted(path, text, **options):
        path.write_bytes(text.encode()[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    assert run("join", results, "--out", joined).exit_code != 0
    assert joined.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "joined.json"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", "[" * 100_000, '{"benchmarks": 5}', "\udcff", '"a"']
)
def test_foreign_files_are_named(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for command in (("report", path, "--out", tmp_path / "out"), ("join", path, "--out", "x.json")):
        found = run(*command)
        assert found.exit_code == 2
        (line,) = found.stderr.splitlines()
        assert f"{path}: wanted a file of `pytest bench --benchmark-json`, got " in line
    assert list(tmp_path.iterdir()) == [path]


def nodes(value, found):
    """Every (holder, key) of a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            nodes(value[key], found)
    return found


@given(st.data())
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_any_value_may_be_another(tmp_path, data):
    """A file is named as a foreign one, or a page can be made of it."""
    changed = json.loads(json.dumps(SMALL | {"benchmarks": SMALL["benchmarks"][:3]}))
    holder, key = data.draw(st.sampled_from(nodes(changed, [])))
    other = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3) | st.floats()
    holder[key] = data.draw(other | st.just([]) | st.just({}) | st.just({"a": [1]}) | st.just([[]]))
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    try:
        report = Report.load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    assert markdown(report, None)
