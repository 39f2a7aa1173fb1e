"""Checks of arguments: arrays of any kind, boxes, pairs. Errors name the argument."""

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
    """Check a fixed number of finite numbers.

    Parameters
    ----------
    name
        Of the argument, for the message.
    value
        A sequence, array or tensor; bools do not count as numbers.
    layout
        Names of the numbers, ``"(width, height)"`` for example; there are as many of them.
    whole
        They have to be integers.

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


def as_tuples(
    name: str, values: Iterable[Any], layout: str, *, whole: bool = False
) -> list[list[Any]]:
    """:func:`as_numbers` of each entry.

    Raises
    ------
    ValueError
        An entry is something else, or the argument is a single entry without a list around it.

    Examples
    --------
    >>> as_tuples("heads", (2, 0), "(layer, head)", whole=True)
    Traceback (most recent call last):
    ...
    ValueError: heads: wanted a list of (layer, head) of integers, got (2, 0)
    """
    try:
        entries = [_numbers(value, layout, whole) for value in values]
    except (TypeError, ValueError):
        wanted = f"a list of {layout}{' of integers' * whole}"
        raise ValueError(f"{name}: wanted {wanted}, got {values!r}") from None
    for entry in entries:
        _check_finite(name, entry, layout)
    return entries


def check_pixels(
    name: str, boxes: Sequence[Box], size: tuple[float, float], layout: str = BOX
) -> None:
    """Check that the boxes of one image are in pixels, and that each has an area inside the image.

    A box whose sides all lie in 0 ... 1 holds shares of the image's sides: in pixels it would be
    the first one at most. It raises, except for the whole first pixel, (0, 0, 1, 1), where another
    box of the image shows that pixels are meant; and except for an image of at most 1 x 1.

    Parameters
    ----------
    name
        Of the argument, for the message.
    boxes
        Boxes in the order of ``layout``.
    size
        Width and height of the image (pixels).
    layout
        Names of a box's sides, for the message.

    Raises
    ------
    ValueError
        A box has no area inside the image, or is not in pixels.
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


def check_query(query: int, count: int) -> None:
    """Check the index of one of a capture's queries; a negative one counts from the last.

    Raises
    ------
    ValueError
        There is no such query.
    """
    if not -count <= query < count:
        raise ValueError(f"query: wanted one of the capture's {count} queries, got {query}")


def _numbers(value: Any, layout: str, whole: bool) -> list[Any]:
    array = as_array(value)  # ragged sequences raise, or are arrays of objects
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
