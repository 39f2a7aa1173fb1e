"""Pictures for the demo model: objects in the cells of a grid, each drawn with random variation.

A scene is a ``GRID x GRID`` board of cells, one cell per merged image token of the model, so that
the ground-truth region of an object is exact: one token. Everything is a function of a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

GRID = 6
CELL = 28  # pixels: two patches of 14 a side, merged into one image token
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 90, 220),
    "yellow": (235, 200, 20),
    "purple": (140, 60, 190),
    "orange": (245, 130, 30),
    "cyan": (30, 190, 205),
    "black": (30, 30, 35),
}
FILLS = ("solid", "hollow")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "arrow")
BACKGROUND = (244, 242, 236)
_SUPERSAMPLE = 4


@dataclass(frozen=True)
class Kind:
    """What a question names: a fill and a shape, for example ``hollow star``.

    Attributes
    ----------
    fill : str
        One of ``FILLS``.
    shape : str
        One of ``SHAPES``.

    Examples
    --------
    >>> Kind("hollow", "star").twin.name
    'solid star'
    """

    fill: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.fill} {self.shape}"

    @property
    def twin(self) -> Kind:
        """The look-alike: the same shape, filled the other way."""
        return Kind(FILLS[1 - FILLS.index(self.fill)], self.shape)


KINDS: tuple[Kind, ...] = tuple(Kind(fill, shape) for shape in SHAPES for fill in FILLS)


@dataclass(frozen=True)
class Placed:
    """An object of a scene.

    Attributes
    ----------
    kind : Kind
        Its fill and shape.
    color : str
        One of ``COLORS``.
    cell : int
        The grid cell it stands in, row-major.
    """

    kind: Kind
    color: str
    cell: int


@dataclass(frozen=True)
class Scene:
    """The objects of one picture.

    Attributes
    ----------
    objects : tuple of Placed
        No two of one kind; the first is the one that the question asks for.
    """

    objects: tuple[Placed, ...]

    def find(self, kind: Kind) -> Placed:
        """The object of that kind; ``KeyError`` when there is none."""
        for placed in self.objects:
            if placed.kind == kind:
                return placed
        raise KeyError(kind.name)


def sample_scene(rng: np.random.Generator, objects: int, twins: bool = True) -> Scene:
    """Draw a scene of ``objects`` objects; with ``twins`` the first two are look-alikes.

    Colours come round by round, all of them once before any of them twice, so that the first
    object's colour cannot be guessed from how often a colour occurs.

    Parameters
    ----------
    rng
        Source of every choice.
    objects
        How many objects, at most ``len(KINDS)``.
    twins
        Make objects 0 and 1 a pair that differs in fill and colour only.
    """
    order = [KINDS[i] for i in rng.permutation(len(KINDS))]
    if twins and objects > 1:
        twin = order[0].twin
        order.remove(twin)
        order.insert(1, twin)
    cells = rng.permutation(GRID * GRID)
    colors = list(COLORS)
    rounds = -(-objects // len(colors))
    drawn = np.concatenate([rng.permutation(len(colors)) for _ in range(rounds)])[:objects]
    chosen = [colors[i] for i in drawn]
    placed = zip(order[:objects], chosen, cells[:objects], strict=True)
    return Scene(tuple(Placed(kind, color, int(cell)) for kind, color, cell in placed))


def draw_cell(rng: np.random.Generator, kind: Kind | None, color: str | None) -> np.ndarray:
    """One cell, ``uint8 [CELL, CELL, 3]``: size, place, tilt, shade and pixel noise vary.

    ``kind=None`` draws an empty cell.
    """
    side = CELL * _SUPERSAMPLE
    canvas = Image.new("RGB", (side, side), BACKGROUND)
    if kind is not None and color is not None:
        radius = side * rng.uniform(0.33, 0.42)
        center = (side / 2 + rng.uniform(-0.05, 0.05, size=2) * side).tolist()
        tilt = math.radians(rng.uniform(-9, 9))
        shade = np.clip(np.array(COLORS[color]) + rng.normal(0, 8, size=3), 0, 255).astype(int)
        _draw_shape(ImageDraw.Draw(canvas), kind, radius, center, tilt, tuple(shade.tolist()))
    small = canvas.resize((CELL, CELL), Image.Resampling.LANCZOS)
    noisy = np.asarray(small, dtype=np.float64) + rng.normal(0, 6, size=(CELL, CELL, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The scene as an RGB picture of ``GRID * CELL`` pixels a side."""
    by_cell = {placed.cell: placed for placed in scene.objects}
    rows = []
    for row in range(GRID):
        cells = []
        for column in range(GRID):
            placed = by_cell.get(row * GRID + column)
            kind, color = (placed.kind, placed.color) if placed else (None, None)
            cells.append(draw_cell(rng, kind, color))
        rows.append(np.concatenate(cells, axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0), mode="RGB")


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    kind: Kind,
    radius: float,
    center: Sequence[float],
    tilt: float,
    color: tuple[int, ...],
) -> None:
    cos, sin = math.cos(tilt), math.sin(tilt)
    points = [
        (center[0] + radius * (x * cos - y * sin), center[1] + radius * (x * sin + y * cos))
        for x, y in _outline(kind.shape)
    ]
    if kind.fill == "solid":
        draw.polygon(points, fill=color)
        return
    width = max(1, round(radius * 0.27))
    draw.line([*points, points[0], points[1]], fill=color, width=width, joint="curve")


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape within the unit disc, y downwards."""
    if shape == "circle":
        return _regular(36, 0.92)
    if shape == "square":
        return ((-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78))
    if shape == "triangle":
        return ((0.0, -0.95), (0.95, 0.75), (-0.95, 0.75))
    if shape == "diamond":
        return ((0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0))
    if shape == "star":
        outer, inner = _regular(5, 1.05), _regular(5, 0.46, math.pi / 5)
        return tuple(point for pair in zip(outer, inner, strict=True) for point in pair)
    if shape == "heart":
        return tuple(_heart(2 * math.pi * i / 40) for i in range(40))
    if shape == "cross":
        a, b = 0.34, 0.95
        return (
            (-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
            (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a),
        )  # fmt: skip
    if shape == "arrow":
        return (
            (-0.95, -0.32), (0.05, -0.32), (0.05, -0.85), (1.0, 0.0),
            (0.05, 0.85), (0.05, 0.32), (-0.95, 0.32),
        )  # fmt: skip
    raise ValueError(f"shape: wanted one of {list(SHAPES)}, got {shape!r}")


def _regular(corners: int, radius: float, turn: float = 0.0) -> tuple[tuple[float, float], ...]:
    angles = (2 * math.pi * i / corners + turn for i in range(corners))
    return tuple((radius * math.sin(a), -radius * math.cos(a)) for a in angles)


def _heart(t: float) -> tuple[float, float]:
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17, -(y + 2) / 17
