"""Tokens and elements on their way to a geometry."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vrga_ext.geometry.planes import NOWHERE, Plane, Rect

Shape = tuple[int, int]  # rows, columns
Fold = Callable[[int, int], int]


class Maps(NamedTuple):
    """Places of elements, in arrays of one shape.

    Attributes
    ----------
    x, y : float [...]
        Place of each element in the picture (pixels); NaN for padding.
    inside : float [...]
        Share of each element that shows the picture.
    """

    x: np.ndarray
    y: np.ndarray
    inside: np.ndarray


@dataclass
class Cells:
    """Tokens in their order; not cut to the picture.

    Attributes
    ----------
    rects : list of (left, top, right, bottom)
        In pixels of the picture; NaN for separators.
    padding : list of float
        Share of each that is not the picture.
    plane : list of int
        Index of the plane that each shows.
    """

    rects: list[Rect] = field(default_factory=list)
    padding: list[float] = field(default_factory=list)
    plane: list[int] = field(default_factory=list)

    def add(self, rect: Rect, padding: float, plane: int) -> None:
        self.rects.append(rect)
        self.padding.append(padding)
        self.plane.append(plane)

    def add_plane(self, plane: Plane, index: int, step: int, fold: Fold) -> None:
        """The tokens of a plane, row-major, of ``step`` x ``step`` elements each."""
        rows, columns = plane.shape
        for i, j in itertools.product(range(fold(rows, step)), range(fold(columns, step))):
            top, left = i * step, j * step
            bottom, right = min(top + step, rows), min(left + step, columns)
            shown = float(plane.inside[top:bottom, left:right].mean())
            self.add(plane.rect(top, left, bottom, right), 1 - shown, index)

    def add_separators(self, count: int, plane: int) -> None:
        for _ in range(count):
            self.add(NOWHERE, 1.0, plane)


def floor(a: int, b: int) -> int:
    return a // b


def ceil(a: int, b: int) -> int:
    return -(-a // b)
