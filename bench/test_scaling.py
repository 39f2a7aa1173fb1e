"""Cost of a decode step against keys, batch, image and boosted tokens, gated heads, free cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from bench.case import Measure, Settings
from bench.implementations import DECODE, DYNAMIC, OFF, PACKED, STATIC
from bench.inputs import Case, Shape
from bench.operations import Operation


@dataclass(frozen=True)
class Point:
    """One point of a sweep."""

    sweep: str
    x: float
    case: Case

    def __str__(self) -> str:
        return f"{self.sweep} = {self.x:g}, {self.case}"


def points(settings: Settings) -> list[Point]:
    """Every sweep around one shape."""
    dtype = "bfloat16" if settings.device == "cuda" else "float32"
    middle = Case(Shape(1, 16, 2, 4096, 128), dtype)
    lengths, batches = [1 << n for n in range(9, 16)], [1, 2, 4, 8, 16]
    shares, heads = [0.0, 0.25, 0.5, 0.75, 1.0], [0, 4, 8, 12, 16]
    cache, filled = 32768, [0.25, 0.5, 0.75, 1.0]
    if settings.smoke:
        middle = replace(middle, shape=Shape(1, 4, 2, 96, 64))
        lengths, batches, shares, heads = [32], [2], [0.0, 1.0], [0, 4]
        cache, filled = 320, [0.25]
    shape = middle.shape
    boosted = replace(middle, image_share=0.75)
    found = [Point("keys", n, replace(middle, shape=replace(shape, keys=n))) for n in lengths]
    found += [Point("batch", n, replace(middle, shape=replace(shape, batch=n))) for n in batches]
    for x in shares:
        found.append(Point("share of image tokens", x, replace(middle, image_share=x)))
        for form, contiguous in {"scattered": False, "contiguous": True}.items():
            case = replace(boosted, focus_share=x, contiguous=contiguous)
            found.append(Point(f"share of boosted image tokens, {form}", x, case))
    found += [Point("heads gated", n, replace(middle, gated_heads=n)) for n in heads]
    static = replace(middle, shape=replace(shape, keys=cache))
    found += [Point("filled share of a static cache", x, replace(static, filled=x)) for x in filled]
    return found


def implementations(settings: Settings) -> list[str]:
    """Ours, and plain attention as a measure; on a GPU also with a mask, which FLASH refuses."""
    on_gpu = ["SDPA FLASH packed", "SDPA EFFICIENT packed"]
    return [DYNAMIC, STATIC, OFF, *([PACKED] if settings.device == "cpu" else on_gpu)]


class ScalingOperation(Operation):
    """A decode step that knows its place in a sweep."""

    def __init__(self, point: Point, settings: Settings) -> None:
        super().__init__(point.case, DECODE, settings)
        self._place = {"sweep": point.sweep, "x": point.x}

    def check(self, name: str) -> dict[str, Any]:
        """As any decode step."""
        return super().check(name) | self._place


@pytest.mark.measured(cases=points, implementations=implementations)
def test_scaling(case: Point, implementation: str, measure: Measure, settings: Settings) -> None:
    measure("scaling", lambda: ScalingOperation(case, settings))
