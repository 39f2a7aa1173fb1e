"""Every model family in every way of generating; the README's table is written from this."""

from __future__ import annotations

import pytest

from tests.adapter.families import FAMILIES
from tests.adapter.modes import MODES, StockCannot, subject

CELLS = [
    pytest.param(family, mode, id=f"{family}-{mode.name}")
    for family, registered in FAMILIES.items()
    for mode in MODES.values()
    if mode.does_not_apply(registered.media) is None
]


@pytest.mark.parametrize(("family", "mode"), CELLS)
def test_cell(family, mode):
    try:
        mode.check(subject(family))
    except StockCannot as reason:
        pytest.skip(f"{family}, {mode.name}: {reason} {reason.__cause__!r:.300}")
