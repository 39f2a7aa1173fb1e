"""Rectangles of the image tokens of one picture, and which tokens a part of it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vrga_ext._arguments import BOX, Box, as_array, as_tuples, check_pixels

WHOLE, TILE, NONE = 0, 1, -1  # levels
_POINT = "(x, y)"
_ROUNDING = 1e-6  # of coverage, and of a mask's pixels
_TOUCH = 0.5  # gap between neighbours, in tokens: some processors leave a strip between two tiles


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class TokenGeometry:
    """Where the n image tokens of one picture lie in it.

    A rectangle says which pixels a token is made of. Resampling reaches some pixels further, and
    attention within the vision tower further still.

    Attributes
    ----------
    rects : float64 [n, 4]
        Left, top, right and bottom of each token, cut to the picture (pixels). NaN for a token
        that shows nothing of it: a separator, the end of a row, padding. The picture is the one
        that the model saw: turned upright if it was loaded from a path or URL, as it is stored if
        it was a PIL image.
    level : int64 [n]
        0 for a token of the whole picture, or of what the processor leaves of it; 1 for one of a
        tile, shown larger next to the whole picture or in its place; -1 where ``rects`` is NaN.
    size : (int, int)
        Width and height of the picture (pixels).
    page : int64 [n]
        Index of the page of a document; 0 for every token of a picture.
    frame : int64 [n], optional
        Index of a video's frame; None for a picture.
    time : float64 [n], optional
        Time of a video's frame (seconds); None for a picture.

    Examples
    --------
    Two tokens of the whole picture of 40 x 20 pixels, a separator, and two of its right half:

    >>> rects = [(0, 0, 20, 20), (20, 0, 40, 20), [np.nan] * 4, (20, 0, 30, 20), (30, 0, 40, 20)]
    >>> geometry = TokenGeometry(np.array(rects), np.array([0, 0, -1, 1, 1]), (40, 20))
    >>> geometry.box_tokens([(0, 0, 30, 20)])
    array([0, 1, 3])
    >>> geometry.point_tokens([(35, 5)], level=1)
    array([4])
    """

    rects: np.ndarray
    level: np.ndarray
    size: tuple[int, int]
    page: np.ndarray = None  # type: ignore[assignment]  # filled in below
    frame: np.ndarray | None = None
    time: np.ndarray | None = None

    def __post_init__(self) -> None:
        rects = np.array(self.rects, dtype=np.float64)
        n = len(rects)
        if rects.shape != (n, 4):
            raise ValueError(f"rects: wanted [n, 4], got {[*rects.shape]}")
        object.__setattr__(self, "rects", _fixed(rects))
        for name, kind in (
            ("level", np.int64),
            ("page", np.int64),
            ("frame", np.int64),
            ("time", float),
        ):
            value = getattr(self, name)
            if value is None and name == "page":
                value = np.zeros(n)
            if value is None:
                continue
            array = np.array(value, dtype=kind)
            if array.shape != (n,):
                raise ValueError(f"{name}: wanted [{n}], got {[*array.shape]}")
            object.__setattr__(self, name, _fixed(array))
        if not np.array_equal(self.level == NONE, np.isnan(rects).any(1)):
            raise ValueError(
                "level: wanted -1 for the tokens without a rectangle, and for no other"
            )

    def __len__(self) -> int:
        """The number of tokens, n."""
        return len(self.rects)

    def box_tokens(
        self, boxes: Sequence[Box], *, min_coverage: float = 0.5, level: int | None = None
    ) -> np.ndarray:
        """Tokens that belong to any of the boxes.

        A token belongs to a box that covers at least ``min_coverage`` of its rectangle. Where a box
        covers no token of a level that far, because it is small or lies across tokens, the token
        that it covers most belongs to it (several, if it covers them equally), so that no region
        is lost.

        Parameters
        ----------
        boxes
            ``(left, top, right, bottom)`` in pixels of the picture, right and bottom exclusive;
            parts outside the picture do not count. Boxes in shares of the picture's sides, all in
            0 ... 1, raise: multiply them by width and height. So does (0, 0, 1, 1) without another
            box in pixels; use a mask for the first pixel.
        min_coverage
            Share of a token's rectangle that one box covers, in (0, 1]. Edges are within about 0.1
            pixel; with 1 a token may be left out that a box covers but for that.
        level
            Tokens of this level alone: 0 or 1, as in ``level``. Those of both without it.

        Returns
        -------
        int64 [k]
            Indices of the tokens, ascending; none where no token shows anything of the boxes, for
            a part that the processor cuts off.

        Raises
        ------
        ValueError
            A box is not four finite numbers, not in pixels, or empty within the picture;
            ``min_coverage`` or ``level`` is out of range.

        Examples
        --------
        >>> halves = TokenGeometry(np.array([(0, 0, 8, 8), (8, 0, 16, 8)]), np.zeros(2), (16, 8))
        >>> halves.box_tokens([(2, 0, 10, 8)])
        array([0])
        """
        _check_coverage(min_coverage)
        checked = as_tuples("boxes", boxes, BOX)
        check_pixels("boxes", checked, self.size)
        chosen = np.zeros(len(self), dtype=bool)
        left, top, right, bottom = self.rects.T
        for box in checked:
            across = np.minimum(right, box[2]) - np.maximum(left, box[0])
            down = np.minimum(bottom, box[3]) - np.maximum(top, box[1])
            covered = np.maximum(across, 0) * np.maximum(down, 0)
            chosen |= self._enough(covered, min_coverage, level)
        return np.flatnonzero(chosen)

    def mask_tokens(
        self, mask: Any, *, min_coverage: float = 0.5, level: int | None = None
    ) -> np.ndarray:
        """Tokens that belong to a mask.

        Parameters
        ----------
        mask : bool [height, width]
            Pixels of the region; an array, a tensor or a picture, of the size of the picture.
        min_coverage, level
            As in :meth:`box_tokens`.

        Returns
        -------
        int64 [k]
            As :meth:`box_tokens`.

        Raises
        ------
        ValueError
            The mask has no pixel or another size than the picture; ``min_coverage`` or ``level``
            as in :meth:`box_tokens`.

        Examples
        --------
        >>> halves = TokenGeometry(np.array([(0, 0, 8, 8), (8, 0, 16, 8)]), np.zeros(2), (16, 8))
        >>> halves.mask_tokens(np.arange(16) >= np.full((8, 1), 9))
        array([1])
        """
        _check_coverage(min_coverage)
        pixels = as_array(mask) != 0
        width, height = self.size
        if pixels.shape != (height, width):
            raise ValueError(
                f"mask: wanted [height, width] of the picture, {[height, width]}, got "
                f"{[*pixels.shape]}"
            )
        if not pixels.any():
            raise ValueError(f"mask: wanted at least one pixel, got none in {[*pixels.shape]}")
        sums = np.pad(pixels.cumsum(0).cumsum(1), ((1, 0), (1, 0))).astype(np.float64)
        left, top, right, bottom = np.nan_to_num(self.rects).T
        covered = (
            _between(sums, right, bottom)
            - _between(sums, left, bottom)
            - _between(sums, right, top)
            + _between(sums, left, top)
        )
        covered[covered < _ROUNDING] = 0
        return np.flatnonzero(self._enough(covered, min_coverage, level))

    def point_tokens(
        self, points: Sequence[Sequence[float]], *, level: int | None = None
    ) -> np.ndarray:
        """Tokens whose rectangle contains any of the points.

        Parameters
        ----------
        points
            ``(x, y)`` in pixels of the picture; (0.5, 0.5) is the middle of the first pixel.
        level
            As in :meth:`box_tokens`.

        Returns
        -------
        int64 [k]
            As :meth:`box_tokens`.

        Raises
        ------
        ValueError
            A point is not two finite numbers within the picture, or ``level`` is none.

        Examples
        --------
        >>> halves = TokenGeometry(np.array([(0, 0, 8, 8), (8, 0, 16, 8)]), np.zeros(2), (16, 8))
        >>> halves.point_tokens([(8, 3)])
        array([1])
        """
        checked = as_tuples("points", points, _POINT)
        width, height = self.size
        inside = np.zeros(len(self), dtype=bool)
        left, top, right, bottom = self.rects.T
        for x, y in checked:
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(
                    f"points: wanted {_POINT} within the picture of {width} x {height} pixels, got "
                    f"{(x, y)}"
                )
            inside |= (left <= x) & (x < right) & (top <= y) & (y < bottom)
        return np.flatnonzero(inside & self._of_level(level))

    def neighbours(self, tokens: Any) -> np.ndarray:
        """Tokens that touch any of the given ones, at a side or a corner.

        Tokens touch within one level of one page, also across the border of two tiles.

        Parameters
        ----------
        tokens : int [k]
            Indices of tokens; one without a rectangle touches none.

        Returns
        -------
        int64 [m]
            Indices, ascending, without those of ``tokens``.

        Raises
        ------
        ValueError
            ``tokens`` is not a list of indices of the picture's tokens.

        Examples
        --------
        >>> rects = [(x, y, x + 4, y + 4) for y in (0, 4) for x in (0, 4, 8)]
        >>> TokenGeometry(np.array(rects), np.zeros(6), (12, 8)).neighbours([0])
        array([1, 3, 4])
        """
        start = as_array(tokens)
        if not start.size:
            return np.zeros(0, dtype=np.int64)
        if start.ndim != 1 or start.dtype.kind not in "iu":
            raise ValueError(f"tokens: wanted int [k], got {start.dtype} {[*start.shape]}")
        if start.min() < 0 or start.max() >= len(self):
            raise ValueError(f"tokens: wanted indices below {len(self)}, got {start.tolist()}")
        low, high = self.rects[:, :2], self.rects[:, 2:]
        reach = _TOUCH * (high - low)
        found = np.zeros(len(self), dtype=bool)
        for token in start:
            gap = np.maximum(low - high[token], low[token] - high)  # [n, 2], below 0 inside
            near = (gap < np.minimum(reach, reach[token])).all(1)
            found |= near & (self.level == self.level[token]) & (self.page == self.page[token])
        found[start] = False
        return np.flatnonzero(found)

    def border_tokens(self, *, level: int | None = None) -> np.ndarray:
        """Tokens at the border of what the tokens of their level show.

        Parameters
        ----------
        level
            As in :meth:`box_tokens`.

        Returns
        -------
        int64 [k]
            Indices, ascending.

        Raises
        ------
        ValueError
            ``level`` is none.

        Examples
        --------
        >>> rects = [(x, y, x + 4, y + 4) for y in (0, 4, 8) for x in (0, 4, 8)]
        >>> TokenGeometry(np.array(rects), np.zeros(9), (12, 12)).border_tokens()
        array([0, 1, 2, 3, 5, 6, 7, 8])
        """
        found = np.zeros(len(self), dtype=bool)
        for own in self._levels(level):
            low, high = self.rects[own, :2], self.rects[own, 2:]
            reach = _TOUCH * (high - low)
            found[own] = ((low - low.min(0) < reach) | (high.max(0) - high < reach)).any(1)
        return np.flatnonzero(found)

    def _of_level(self, level: int | None) -> np.ndarray:
        if level not in (None, WHOLE, TILE):
            raise ValueError(f"level: wanted 0, 1 or None, got {level!r}")
        return self.level != NONE if level is None else self.level == level

    def _levels(self, level: int | None) -> list[np.ndarray]:
        """Tokens of each level and page that has any, bool [n] each."""
        wanted = self._of_level(level)
        keys = np.stack([self.level, self.page], 1)
        return [wanted & (keys == key).all(1) for key in np.unique(keys[wanted], axis=0)]

    def _enough(self, covered: np.ndarray, min_coverage: float, level: int | None) -> np.ndarray:
        """Tokens whose covered area (pixels) is large enough, bool [n]."""
        low, high = self.rects[:, :2], self.rects[:, 2:]
        coverage = np.nan_to_num(covered / (high - low).prod(1))
        chosen = np.zeros(len(self), dtype=bool)
        for own in self._levels(level):
            wanted = min(min_coverage, float(coverage[own].max())) * (1 - _ROUNDING)
            chosen |= own & (coverage >= wanted) & (coverage > 0)
        return chosen


def _fixed(array: np.ndarray) -> np.ndarray:
    """Read-only: geometries are cached."""
    array.setflags(write=False)
    return array


def _between(sums: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Area of a mask above and to the left of points, float64 [n].

    ``sums`` [height + 1, width + 1] has it for whole pixels; between them it is bilinear.
    """
    rows, columns = (
        np.minimum(v.astype(int), s - 2) for v, s in zip((y, x), sums.shape, strict=True)
    )
    down, across = y - rows, x - columns
    upper = sums[rows, columns] * (1 - across) + sums[rows, columns + 1] * across
    lower = sums[rows + 1, columns] * (1 - across) + sums[rows + 1, columns + 1] * across
    return upper * (1 - down) + lower * down


def _check_coverage(min_coverage: float) -> None:
    if not 0 < min_coverage <= 1:
        raise ValueError(f"min_coverage: wanted a number in (0, 1], got {min_coverage!r}")
