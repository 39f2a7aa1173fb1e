"""Arguments as people give them: arrays of any kind, boxes, pairs. Errors name the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Box = Sequence[float]  # left, top, right, bottom in pixels
BOX = "(left, top, right, bottom)"


def as_array(values: Any) -> np.ndarray:
    """A numpy array of a tensor (of any device and dtype), an array or a sequence."""
    detach: Callable[[], Any] | None = getattr(values, "detach", None)
    if detach is None:
        return np.asarray(values)
    tensor = detach().cpu()
    return np.asarray(tensor.double() if tensor.is_floating_point() else tensor)


def as_numbers(name: str, value: Any, layout: str, *, whole: bool = False) -> list[Any]:
    """As many finite numbers as ``layout`` names, integers if ``whole``; truth values are none.

    Raises
    ------
    ValueError
        It is something else.

    Examples
    --------
    >>> as_numbers("image_size", (40, 20), "(width, height)")
    [40, 20]
    """
    try:
        numbers = _numbers(value, layout, whole)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: wanted {layout}{' of integers' * whole}, got {value!r}"
        ) from None
    _check_finite(name, numbers, layout)
    return numbers


def as_rows(
    name: str, values: Iterable[Any], layout: str, *, whole: bool = False
) -> list[list[Any]]:
    """:func:`as_numbers` of each entry.

    Raises
    ------
    ValueError
        An entry is something else, or there are no entries but one row without a list around it.

    Examples
    --------
    >>> as_rows("heads", (2, 0), "(layer, head)", whole=True)
    Traceback (most recent call last):
    ...
    ValueError: heads: wanted a list of (layer, head) of integers, got (2, 0)
    """
    try:
        rows = [_numbers(value, layout, whole) for value in values]
    except (TypeError, ValueError):
        wanted = f"a list of {layout}{' of integers' * whole}"
        raise ValueError(f"{name}: wanted {wanted}, got {values!r}") from None
    for row in rows:
        _check_finite(name, row, layout)
    return rows


def as_size(name: str, value: Any) -> tuple[float, float]:
    """Width and height of an image, above 0.

    Raises
    ------
    ValueError
        It is something else.
    """
    width, height = as_numbers(name, value, "(width, height)")
    if not (width > 0 and height > 0):
        raise ValueError(f"{name}: wanted (width, height) above 0, got {value!r}")
    return width, height


def check_pixels(
    name: str, boxes: Sequence[Box], size: tuple[float, float], layout: str = BOX
) -> None:
    """Boxes of one image are in its pixels, and each has an area inside it.

    Boxes whose sides all lie in 0 ... 1 are shares of the image's sides and no pixels, since in
    pixels they were the first one at most, or a part of it. The whole first pixel, (0, 0, 1, 1), is
    believed where another box of the image shows that pixels are meant. Of an image that is not
    larger than 1 x 1 a share is a pixel.

    Raises
    ------
    ValueError
        They are something else.
    """
    width, height = size
    shares = [min(box) >= 0 and max(box) <= 1 for box in boxes]
    for box, is_share in zip(boxes, shares, strict=True):
        left, top, right, bottom = box
        across, down = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
        if not (across > 0 and down > 0):
            raise ValueError(
                f"{name}: wanted {layout} with an area inside the image of {width} x {height} "
                f"pixels, got {tuple(box)}"
            )
        if max(size) > 1 and is_share and (all(shares) or any(side % 1 for side in box)):
            raise ValueError(
                f"{name}: wanted {layout} in pixels of the image of {width} x {height}, got "
                f"{tuple(box)}, which are shares of its sides: multiply them by width and height"
            )


def check_row(row: int, rows: int) -> None:
    """``row`` is one of a capture's rows, from the front or, if negative, from the back.

    Raises
    ------
    ValueError
        It is not.
    """
    if not -rows <= row < rows:
        raise ValueError(f"row: wanted one of the capture's {rows} rows, got {row}")


def _numbers(value: Any, layout: str, whole: bool) -> list[Any]:
    array = as_array(value)  # ragged things, and those that are no numbers, are errors or no row
    if array.shape != (layout.count(",") + 1,) or array.dtype.kind not in (
        "iu" if whole else "iuf"
    ):
        raise ValueError
    if any(isinstance(entry, bool | np.bool_) for entry in value):
        raise ValueError
    numbers: list[Any] = array.tolist()
    return numbers


def _check_finite(name: str, numbers: list[Any], layout: str) -> None:
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name}: wanted {layout} of finite numbers, got {tuple(numbers)}")
