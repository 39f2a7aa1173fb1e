"""``decode_attention`` against its peers."""

from __future__ import annotations

import pytest

from bench.inputs import Case
from bench.operations import Operation, cases, on_device
from bench.race import Compete, Settings
from bench.rivals import DECODE


@pytest.mark.race(cases=cases, rivals=on_device(DECODE))
def test_decode_attention(case: Case, rival: str, compete: Compete, settings: Settings) -> None:
    compete("decode_attention", lambda: Operation(case, DECODE, settings))
