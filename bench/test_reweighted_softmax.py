"""``reweighted_softmax`` against its baselines."""

from __future__ import annotations

import pytest

from bench.case import Measure, Settings
from bench.implementations import REWEIGHTED_SOFTMAX
from bench.inputs import Case
from bench.operations import Operation, cases, on_device


@pytest.mark.measured(cases=cases, implementations=on_device(REWEIGHTED_SOFTMAX))
def test_reweighted_softmax(
    case: Case, implementation: str, measure: Measure, settings: Settings
) -> None:
    measure("reweighted_softmax", lambda: Operation(case, REWEIGHTED_SOFTMAX, settings))
