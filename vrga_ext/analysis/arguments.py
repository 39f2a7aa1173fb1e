"""Arguments as people give them: arrays of any kind, boxes, pairs. Errors name the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def as_array(values: Any) -> np.ndarray:
    """A numpy array of a tensor (of any device and dtype), an array or a sequence."""
    detach: Callable[[], Any] | None = getattr(values, "detach", None)
    if detach is None:
        return np.asarray(values)
    tensor = detach().cpu()
    return np.asarray(tensor.double() if tensor.is_floating_point() else tensor)


def as_numbers(name: str, value: Any, layout: str, *, whole: bool = False) -> list[Any]:
    """As many numbers as ``layout`` names, integers if ``whole``.

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
        array = as_array(value)
    except (TypeError, ValueError):  # ragged, or of things that are no numbers
        array = np.empty(())
    kinds = "iu" if whole else "iuf"
    if array.shape != (layout.count(",") + 1,) or array.dtype.kind not in kinds:
        raise ValueError(f"{name}: wanted {layout}{' of integers' * whole}, got {value!r}")
    return list(array.tolist())


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
        return [as_numbers(name, value, layout, whole=whole) for value in values]
    except (TypeError, ValueError):
        wanted = f"a list of {layout}{' of integers' * whole}"
        raise ValueError(f"{name}: wanted {wanted}, got {values!r}") from None


def check_row(row: int, rows: int) -> None:
    """``row`` is one of a capture's rows, from the front or, if negative, from the back.

    Raises
    ------
    ValueError
        It is not.
    """
    if not -rows <= row < rows:
        raise ValueError(f"row: wanted one of the capture's {rows} rows, got {row}")
