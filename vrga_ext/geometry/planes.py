"""Planes of pixels or patches (tiles, thumbnails, crops) and their places in the picture."""

from __future__ import annotations

import math

import numpy as np

from vrga_ext.geometry.ramps import Size

Rect = tuple[float, float, float, float]  # left, top, right, bottom (pixels)
NOWHERE: Rect = (math.nan, math.nan, math.nan, math.nan)
_SURE = 0.999  # share of an element that shows the picture
_ROUNDING = 0.2  # pixels by which a fit may miss an exact map of a small picture


class Plane:
    """Pixels or patches in rows and columns, and the affine map from them to the picture.

    Attributes
    ----------
    x, y : [rows, columns]
        Place of each element in the picture (pixels); NaN for padding.
    inside : float [rows, columns]
        Share of each element that shows the picture.
    scale, start : (float, float), optional
        Pixels of the picture per element, and the place of the plane's upper left corner; x, then
        y. None if the plane shows nothing of the picture.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, inside: np.ndarray, size: Size) -> None:
        self.x, self.y, self.inside = x, y, inside
        across = _line(_profile(x, inside, 0), _profile(inside, inside, 0), size[0])
        down = _line(_profile(y, inside, 1), _profile(inside, inside, 1), size[1])
        self.scale: tuple[float, float] | None = None
        self.start = (math.nan, math.nan)
        if across is not None and down is not None:
            self.scale, self.start = (across[0], down[0]), (across[1], down[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.x.shape[0], self.x.shape[1]

    def rect(self, top: int, left: int, bottom: int, right: int) -> Rect:
        """The part of the picture that a block of elements shows, not cut to the picture."""
        if self.scale is None:
            return NOWHERE
        (across, down), (x, y) = self.scale, self.start
        return across * left + x, down * top + y, across * right + x, down * bottom + y

    def misfit(self) -> float:
        """How far elements lie off the map, in elements; large for those in a wrong order."""
        if self.scale is None:
            return math.inf
        rows, columns = self.shape
        across, down = self.scale
        wanted_x = across * (np.arange(columns) + 0.5) + self.start[0]
        wanted_y = down * (np.arange(rows)[:, None] + 0.5) + self.start[1]
        sure = self.inside > _SURE
        if not sure.any():
            return 0.0
        # At the borders of tiny pictures resampling clamps a place by a pixel.
        off_x = np.abs(self.x - wanted_x)[sure] / max(across, 2)
        off_y = np.abs(self.y - wanted_y)[sure] / max(down, 2)
        return float(max(np.quantile(off_x, 0.95), np.quantile(off_y, 0.95)))

    def part(self, rows: int, columns: int, size: Size) -> Plane:
        """Its first rows and columns."""
        cut = (slice(rows), slice(columns))
        return Plane(self.x[cut], self.y[cut], self.inside[cut], size)


def finite_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the finite values; NaN without any."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0).sum(axis, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _profile(values: np.ndarray, inside: np.ndarray, axis: int) -> np.ndarray:
    """Mean over one axis, of the elements that show nothing but the picture if there are any."""
    whole = np.where(inside > _SURE, values, np.nan)
    return finite_mean(whole if np.isfinite(whole).any() else values, axis)


def _line(places: np.ndarray, inside: np.ndarray, length: int) -> tuple[float, float] | None:
    """Slope and start of ``place = slope * edge + start`` along one axis, or None.

    ``places`` are those of the elements' centres, at edges 0.5, 1.5 ...
    """
    margin = max(0.01 * length, min(1.5, 0.3 * length))  # resampling clamps places at the borders
    inner = (places > margin) & (places < length - margin)
    at = np.flatnonzero(inner)
    if len(at) < 2:
        at = np.flatnonzero(np.isfinite(places))
    if len(at) == 1:  # nothing else shows the picture, so this element shows all of it
        slope = length / (float(inside[at[0]]) or 1.0)
        return slope, -slope * int(at[0])
    if len(at) < 2 or np.ptp(places[at]) < 1e-6 * length:
        return None
    for _ in range(3):  # least squares, then without what lies off the line
        slope, start = np.polyfit(at + 0.5, places[at], 1)
        off = np.abs(places[at] - slope * (at + 0.5) - start)
        keep = off <= max(3 * np.median(off), 1e-6 * length)
        if keep.all() or keep.sum() < 4:
            break
        at = at[keep]
    return _snapped(float(slope), float(start), len(places), length)


def _snapped(slope: float, start: float, count: int, length: int) -> tuple[float, float]:
    """The exact map, if the fitted one is but a rounding off it.

    Either the plane's ends are the picture's, or the picture was resized to whole elements and put
    at a whole element. Rounding to 8 bits shifts all places alike, by a part of a grey level.
    """
    rounding, shift = max(_ROUNDING, 3e-4 * length), max(_ROUNDING, 1.5e-3 * length)
    if abs(start) < shift and abs(slope * count - length) < rounding:
        return length / count, 0.0
    exact = length / max(round(length / slope), 1)
    offset = round(start / exact)
    if abs(exact - slope) * count < rounding and abs(offset * exact - start) < shift:
        return exact, offset * exact
    return slope, start
