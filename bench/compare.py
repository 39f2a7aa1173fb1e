"""Two files of results: did anything of ours get slower, larger or lost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.results import Report, Result
from bench.rivals import is_ours


@dataclass(frozen=True)
class Change:
    """One figure in both files: seconds, of a peak of memory its bytes."""

    old: Result
    new: Result

    @property
    def ratio(self) -> float:
        """New over old figure; above 1 is worse."""
        return _figure(self.new) / _figure(self.old)

    @property
    def texts(self) -> tuple[str, ...]:
        """Operation, case, implementation, old, new, new / old."""
        return (*self.new.key, _text(self.old), _text(self.new), f"{self.ratio:.3f}")

    def regressed(self, threshold: float) -> bool:
        """Whether something of ours became worse by more than the threshold (a share)."""
        return is_ours(self.new.rival) and self.ratio > 1 + threshold


def _figure(result: Result) -> float:
    return float(result.extra.get("peak_bytes", result.seconds))


def _text(result: Result) -> str:
    if "peak_bytes" in result.extra:
        return f"{result.extra['peak_bytes'] * 1e-6:.1f} MB"
    return f"{result.seconds * 1e6:.1f} µs"


def changes(old: Report, new: Report) -> list[Change]:
    """The figures that both have, those that got worst first.

    Raises
    ------
    ValueError
        They have none in common: nothing would have been compared.
    """
    before = {result.key: result for result in old.results}
    found = [Change(before[r.key], r) for r in new.results if r.key in before]
    if not found:
        raise ValueError("wanted two files with results in common, got none")
    return sorted(found, key=lambda change: -change.ratio)


def missing(old: Report, new: Report) -> list[Result]:
    """The old figures that the new file lacks."""
    kept = {result.key for result in new.results}
    return [result for result in old.results if result.key not in kept]


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Where machines or versions differ; the commit is meant to."""
    names = [name for name in {**old, **new} if name != "commit"]
    return [
        f"{name}: {old.get(name, 'unknown')} -> {new.get(name, 'unknown')}"
        for name in names
        if old.get(name) != new.get(name)
    ]
