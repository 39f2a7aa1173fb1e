"""``decode_attention`` against its baselines."""

from __future__ import annotations

import pytest

from bench.case import Measure, Settings
from bench.implementations import DECODE
from bench.inputs import Case
from bench.operations import Operation, cases, on_device


@pytest.mark.measured(cases=cases, implementations=on_device(DECODE))
def test_decode_attention(
    case: Case, implementation: str, measure: Measure, settings: Settings
) -> None:
    measure("decode_attention", lambda: Operation(case, DECODE, settings))
