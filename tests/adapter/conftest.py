"""Fixtures of the adapter's tests."""

from __future__ import annotations

import warnings

import pytest

from tests.adapter.families import CORE, build
from vrga_ext import VRGAWarning


@pytest.fixture(scope="module", params=CORE)
def family(request):
    return build(request.param)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava"])
def qwen_or_llava(request):
    return build(request.param)


@pytest.fixture
def said():
    """A function that lists what VRGA has said so far."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always", VRGAWarning)
        yield lambda: [str(w.message) for w in record if issubclass(w.category, VRGAWarning)]
