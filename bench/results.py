"""Results of a run, and the JSON files that pytest-benchmark writes them to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What a compact file keeps of a benchmark, and of its statistics.
_KEPT = ("group", "name", "fullname", "param", "extra_info")
_STATISTICS = (
    *("min", "max", "mean", "stddev", "rounds", "median", "iqr", "iqr_outliers", "stddev_outliers"),
    *("outliers", "ops", "iterations"),
)
_FIGURES = ("tokens_per_second", "first_token_s", "growth_bytes", "gated_layers", "error")


@dataclass(frozen=True)
class Result:
    """One implementation in one case of an operation: median seconds per call, other figures."""

    op: str
    case: str
    implementation: str
    seconds: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, extra_info: Mapping[str, Any], seconds: float) -> Result:
        """From a benchmark's ``extra_info``.

        Raises
        ------
        KeyError
            What every result has is missing.
        ValueError
            The device is neither cpu nor cuda; the time, or what a column divides by, is not above
            0; another figure that a column shows is of another kind.
        """
        rest = dict(extra_info)
        op, case, implementation = (rest.pop(name) for name in ("op", "case", "implementation"))
        where = f"{op}, {case}, {implementation}"
        if not all(isinstance(name, str) for name in (op, case, implementation)):
            raise ValueError(f"{where}: wanted op, case and implementation as texts")
        if rest["device"] not in ("cpu", "cuda"):
            raise ValueError(f"{where}: wanted device cpu or cuda, got {rest['device']}")
        numbers = {"median": seconds, "copy_gbs": rest["copy_gbs"]}
        numbers |= {name: rest[name] for name in ("bytes", "peak_bytes") if name in rest}
        for name, number in numbers.items():
            if not _is_finite(number) or not number > 0:
                raise ValueError(f"{where}: wanted {name} above 0, got {number}")
        for name in _FIGURES:
            number = rest.get(name)
            if number is not None and not _is_finite(number):
                raise ValueError(f"{where}: wanted {name} as a number, got {number!r}")
        if not isinstance(rest.get("gated_layers", 0), int):
            raise ValueError(f"{where}: wanted gated_layers whole, got {rest['gated_layers']!r}")
        if "sweep" in rest and not (isinstance(rest["sweep"], str) and _is_finite(rest["x"])):
            raise ValueError(f"{where}: wanted sweep as a text and x as a number")
        return cls(op, case, implementation, seconds, rest)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.op, self.case, self.implementation


@dataclass(frozen=True)
class Report:
    """A file of results."""

    results: list[Result]
    machine: Mapping[str, str]
    absent: Mapping[str, str]  # "op, case: implementation" -> why it was not measured
    note: str = ""  # what the machine does not say of itself

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a file of ``pytest bench --benchmark-json``.

        Raises
        ------
        ValueError
            The file is no such file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results = [
                Result.of(b["extra_info"], b["stats"]["median"]) for b in content["benchmarks"]
            ]
            machine = _texts("machine_info", content["machine_info"]["vrga"])
            note = content.get("note", "")
            if not isinstance(note, str):
                raise ValueError(f"note: wanted a text, got {note!r}")
            return cls(results, machine, _texts("absent", content.get("absent", {})), note)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: wanted a file of `pytest bench --benchmark-json`, got {error!r}"
            ) from error


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _texts(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{name}: wanted names with texts, got {value!r}")
    return value


def join(paths: Iterable[Path], note: str = "") -> dict[str, Any]:
    """One file's content from those of several runs on one machine with the same versions.

    ``note`` is stored behind the notes that the files have.

    Raises
    ------
    ValueError
        A file is none of ``pytest bench --benchmark-json``, the machines differ, or something was
        measured twice.
    """
    joined: dict[str, Any] = {}
    seen: dict[tuple[str, str, str], Path] = {}
    notes: list[str] = []
    for path in paths:
        report, content = Report.load(path), json.loads(path.read_text(encoding="utf-8"))
        for result in report.results:
            if result.key in seen:
                twice = ", ".join(result.key)
                raise ValueError(f"{path}: {twice} was measured in {seen[result.key]} already")
            seen[result.key] = path
        notes.append(report.note)
        if not joined:
            joined = content
        elif report.machine != joined["machine_info"]["vrga"]:
            raise ValueError(f"{path}: another machine, or other versions, than the first file's")
        else:
            joined["benchmarks"] += content["benchmarks"]
            joined["absent"] = joined.get("absent", {}) | dict(report.absent)
    kept = list(dict.fromkeys(text for text in [*notes, note] if text))
    return joined | {"note": "; ".join(kept)} if kept else joined


def compact(content: Mapping[str, Any]) -> str:
    """A results file as JSON with one line per benchmark, without what pytest-benchmark repeats.

    Left out of each benchmark are its options and the parameters that its name holds; of its
    statistics stay those that ``pytest-benchmark compare`` shows.
    """
    lines = []
    for benchmark in content["benchmarks"]:
        kept = {key: benchmark[key] for key in _KEPT if key in benchmark}
        statistics = benchmark["stats"]
        kept["stats"] = {key: statistics[key] for key in _STATISTICS if key in statistics}
        lines.append(json.dumps(kept))
    head = {key: value for key, value in content.items() if key != "benchmarks"}
    listed = ",\n  ".join(lines)
    return f'{json.dumps(head)[:-1]}, "benchmarks": [\n  {listed}\n]}}\n'


Groups = dict[str, dict[str, dict[str, Result]]]


def grouped(results: Iterable[Result]) -> Groups:
    """op -> case -> implementation -> result, in the order of the run."""
    groups: Groups = {}
    for result in results:
        groups.setdefault(result.op, {}).setdefault(result.case, {})[result.implementation] = result
    return groups
