"""Fixtures of the tests of ``capture``."""

from __future__ import annotations

import pytest

from tests.adapter.families import build


@pytest.fixture(scope="module")
def family():
    return build("qwen2_5_vl")


@pytest.fixture(scope="module")
def eager():
    return build("qwen2_5_vl", attn_implementation="eager")
