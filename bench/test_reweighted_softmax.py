"""``reweighted_softmax`` against its peers."""

from __future__ import annotations

import pytest

from bench.inputs import Case
from bench.operations import Operation, cases, on_device
from bench.race import Compete, Settings
from bench.rivals import REWEIGHTED_SOFTMAX


@pytest.mark.race(cases=cases, rivals=on_device(REWEIGHTED_SOFTMAX))
def test_reweighted_softmax(case: Case, rival: str, compete: Compete, settings: Settings) -> None:
    compete("reweighted_softmax", lambda: Operation(case, REWEIGHTED_SOFTMAX, settings))
