"""The README's table of families and modes: written from what the tests did, and read again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.adapter.modes import MODES

Cell = tuple[str, str]  # family and mode
Outcomes = Mapping[Cell, str]  # WORKS, DOES_NOT_APPLY, or the reason why transformers cannot do it

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- support matrix: begin -->\n", "<!-- support matrix: end -->\n"
WORKS, DOES_NOT_APPLY = "works", "does not apply"
_SIGNS = {WORKS: "✓", DOES_NOT_APPLY: "-"}


def columns() -> dict[str, list[str]]:
    """The table's columns and the modes in each."""
    found: dict[str, list[str]] = {}
    for mode in MODES.values():
        found.setdefault(mode.column, []).append(mode.name)
    return found


def render(outcomes: Outcomes, version: str) -> str:
    """Markdown of the table, its notes and the modes' meanings; ``version`` of transformers.

    A cell is what its modes came to, with a number for each mode that transformers itself cannot
    do.
    """
    notes: dict[Cell, int] = {}  # (mode, reason) -> number
    rows = []
    for family in dict.fromkeys(family for family, _ in outcomes):
        cells = [_cell(family, modes, outcomes, notes) for modes in columns().values()]
        rows.append(f"| `{family}` | {' | '.join(cells)} |")
    meanings = (
        f"| {column} | {'; '.join(f'{name}: {MODES[name].meaning}' for name in modes)} |"
        for column, modes in columns().items()
    )
    return "\n".join(
        [
            f"| model type | {' | '.join(columns())} |",
            "| --- |" + " --- |" * len(columns()),
            *rows,
            "",
            f"transformers {version}; ✓ works, - does not apply, and what transformers cannot do:",
            "",
            *(f"{number}. {mode}: {reason}" for (mode, reason), number in notes.items()),
            "",
            "| column | what is tested |",
            "| --- | --- |",
            *meanings,
            "",
        ]
    )


def _cell(family: str, modes: list[str], outcomes: Outcomes, notes: dict[Cell, int]) -> str:
    found = {mode: outcomes[family, mode] for mode in modes}
    cannot = [item for item in found.items() if item[1] not in _SIGNS]
    numbers = [str(notes.setdefault(item, len(notes) + 1)) for item in cannot]
    signs = {_SIGNS[what] for what in found.values() if what in _SIGNS}
    assert len(signs) < 2, f"{family}: modes of a column must need the same media, got {found}"
    return "".join(signs) + (f"<sup>{','.join(numbers)}</sup>" if numbers else "")


def parse(text: str) -> tuple[str, dict[Cell, str]]:
    """Version and outcomes of a rendered table; the inverse of :func:`render`."""
    (version,) = re.findall(r"^transformers ([\w.]+);", text, re.M)
    notes = {
        number: (mode, reason)
        for number, mode, reason in re.findall(r"^(\d+)\. ([^:]+): (.*)$", text, re.M)
    }
    outcomes = {}
    for family, row in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M):
        for cell, modes in zip(row.split(" | "), columns().values(), strict=True):
            for mode in modes:
                outcomes[family, mode] = WORKS if _SIGNS[WORKS] in cell else DOES_NOT_APPLY
            for number in re.findall(r"\d+", cell):
                mode, reason = notes[number]
                outcomes[family, mode] = reason
    return version, outcomes


def in_readme() -> str:
    """The README's part between the markers."""
    return README.read_text().split(BEGIN)[1].split(END)[0]


def write_readme(table: str) -> None:
    """Replace the README's part between the markers."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + table + END + rest.split(END)[1])
