"""Two files of results: did anything of ours get slower?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.results import Report, Result
from bench.rivals import is_ours


@dataclass(frozen=True)
class Change:
    """One figure in both files."""

    old: Result
    new: Result

    @property
    def ratio(self) -> float:
        """New over old time; above 1 is slower."""
        return self.new.seconds / self.old.seconds

    def regressed(self, threshold: float) -> bool:
        """Whether something of ours became slower by more than the threshold (a share)."""
        return is_ours(self.new.rival) and self.ratio > 1 + threshold


def changes(old: Report, new: Report) -> list[Change]:
    """The figures that both have, those that got slowest first.

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


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Where machines or versions differ; the commit is meant to."""
    names = [name for name in {**old, **new} if name != "commit"]
    return [
        f"{name}: {old.get(name, 'unknown')} -> {new.get(name, 'unknown')}"
        for name in names
        if old.get(name) != new.get(name)
    ]
