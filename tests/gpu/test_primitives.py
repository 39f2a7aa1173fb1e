"""The device against the emulator; the comparison itself is tested without a GPU."""

from __future__ import annotations

import shutil

import pytest

from tests.gpu import primitives
from tests.gpu.marks import NEEDS_GPU

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@needs_compiler
def test_emulator_answers_for_every_primitive():
    results = primitives.emulated()
    names = {name for name, _ in results}
    assert len(names) == 8
    assert len(results) == 8 * 64 * 8
    for name in names:
        words = [word for (key, _), word in results.items() if key == name]
        assert len(set(words)) > 32, name
        assert 0xDEADBEEF not in words, name


def test_comparison_allows_rounding_only_where_the_hardware_rounds():
    one, next_up = 0x3F800000, 0x3F800001
    assert primitives.agrees("exponentials", one, next_up)
    assert primitives.agrees("exponentials", 0, 1)  # flushed subnormal
    assert not primitives.agrees("exponentials", one, one + 64)
    assert primitives.agrees("products_bf16", one, next_up)
    assert not primitives.agrees("conversions", one, next_up)
    good, bad = primitives.compare({("copies", 0): 1}, {("copies", 0): 2})
    assert not good
    assert bad == ["copies[0]: device 00000001, emulator 00000002"]


class TestDevice:
    pytestmark = NEEDS_GPU

    def test_agrees_with_the_emulator(self):
        good, bad = primitives.compare(primitives.on_device(), primitives.emulated())
        assert not bad
        assert len(good) == 8
