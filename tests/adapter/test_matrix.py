"""Every model family in every way of generating, and the README's table of what came of it."""

from __future__ import annotations

import pytest
import transformers

from tests.adapter import support_matrix
from tests.adapter.families import FAMILIES
from tests.adapter.modes import MODES, StockCannot, subject
from tests.adapter.support_matrix import DOES_NOT_APPLY, WORKS

CELLS = [
    (family, mode.name)
    for family, registered in FAMILIES.items()
    for mode in MODES.values()
    if mode.does_not_apply(registered.media) is None
]
came_to: dict[tuple[str, str], str] = {}  # what each cell that has run came to


@pytest.mark.parametrize(("family", "mode"), CELLS)
def test_cell(family, mode):
    try:
        MODES[mode].check(subject(family))
    except StockCannot as reason:
        came_to[family, mode] = str(reason)
        pytest.skip(f"{family}, {mode}: {reason} ({reason.__cause__!r:.200})")
    came_to[family, mode] = WORKS


def outcomes() -> dict[tuple[str, str], str]:
    """What the cells came to that have run, and those that do not apply."""
    every = [(family, mode) for family in FAMILIES for mode in MODES]
    found = {cell: came_to.get(cell) if cell in CELLS else DOES_NOT_APPLY for cell in every}
    return {cell: what for cell, what in found.items() if what is not None}


def test_readme_says_what_the_tests_did(request):
    """After all cells: compares the cells that have run, or writes the table."""
    installed = transformers.__version__
    if request.config.getoption("write_support_matrix"):
        missing = [cell for cell in CELLS if cell not in came_to]
        assert missing == [], "the table is written from a run of all cells"
        support_matrix.write_readme(support_matrix.render(outcomes(), installed))
    if not came_to:
        pytest.skip("no cell of the matrix has run")
    version, listed = support_matrix.parse(support_matrix.in_readme())
    if version != installed:
        pytest.skip(f"the README's table is of transformers {version}, {installed} is installed")
    found = outcomes()
    assert {cell: listed[cell] for cell in found} == found, "see CONTRIBUTING.md, 'Support matrix'"


def test_readme_lists_every_family_and_mode():
    _, listed = support_matrix.parse(support_matrix.in_readme())
    assert set(listed) == {(family, mode) for family in FAMILIES for mode in MODES}
