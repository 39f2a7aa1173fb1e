"""``row_statistics`` against its peers."""

from __future__ import annotations

import pytest

from bench.inputs import Case
from bench.operations import Operation, cases, on_device
from bench.race import Compete, Settings
from bench.rivals import ROW_STATISTICS


@pytest.mark.race(cases=cases, rivals=on_device(ROW_STATISTICS))
def test_row_statistics(case: Case, rival: str, compete: Compete, settings: Settings) -> None:
    compete("row_statistics", lambda: Operation(case, ROW_STATISTICS, settings))
