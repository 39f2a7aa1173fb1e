"""``row_statistics`` against its baselines."""

from __future__ import annotations

import pytest

from bench.case import Measure, Settings
from bench.implementations import ROW_STATISTICS
from bench.inputs import Case
from bench.operations import Operation, cases, on_device


@pytest.mark.measured(cases=cases, implementations=on_device(ROW_STATISTICS))
def test_row_statistics(
    case: Case, implementation: str, measure: Measure, settings: Settings
) -> None:
    measure("row_statistics", lambda: Operation(case, ROW_STATISTICS, settings))
