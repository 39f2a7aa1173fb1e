"""From values over the image tokens to the cells of a picture, with numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vrga_ext._arguments import as_array, as_numbers, check_pixels

if TYPE_CHECKING:
    from vrga_ext.selection import Span

Picture = Image.Image | np.ndarray
Box = tuple[float, float, float, float]  # left, upper, right, lower (pixels)
_BOX = "(left, upper, right, lower)"


def cells(values: Any, span: Span) -> np.ndarray:
    """Arrange values over the image tokens as the patches of one image.

    Parameters
    ----------
    values : [..., n]
        One value per image token, in the order of ``region.image_positions``; a tensor or an array.
    span
        The image: one of ``region.images``.

    Returns
    -------
    array [..., rows, columns]

    Raises
    ------
    ValueError
        The values do not reach as far as the image, or its tokens form no rectangle.

    Examples
    --------
    Two images of a prompt, the second one of two rows and two columns:

    >>> from vrga_ext.selection import Span
    >>> cells([0.1, 0.2, 0.5, 0.6, 0.7, 0.8], Span(start=2, length=4, lead=0, grid=(2, 2)))
    array([[0.5, 0.6],
           [0.7, 0.8]])
    """
    array = as_array(values)
    end = span.start + span.length
    if array.ndim == 0 or array.shape[-1] < end:
        raise ValueError(f"values: wanted [..., n] with n at least {end}, got {[*array.shape]}")
    if span.grid is None:
        raise ValueError(
            "span: wanted an image whose tokens form a rectangle, got one whose "
            f"{span.length} tokens do not"
        )
    return array[..., span.start + span.lead : end].reshape(*array.shape[:-1], *span.grid)


def boundary(marked: np.ndarray) -> np.ndarray:
    """Border of a set of cells, as segments.

    Parameters
    ----------
    marked : bool [rows, columns]
        The cells.

    Returns
    -------
    int array [k, 2, 2]
        Both ends (x, y) of each segment, in cells from the upper left corner.

    Examples
    --------
    >>> boundary(np.array([[False, True]])).tolist()
    [[[1, 0], [2, 0]], [[1, 1], [2, 1]], [[1, 0], [1, 1]], [[2, 0], [2, 1]]]
    """
    padded = np.pad(np.asarray(marked, dtype=bool), 1)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, ::-1]  # (x, y) of left ends
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, ::-1]  # of upper ends
    across, down = np.array([1, 0]), np.array([0, 1])
    return np.concatenate(
        [np.stack([level, level + across], 1), np.stack([upright, upright + down], 1)]
    )


def as_picture(image: Any) -> Image.Image:
    """Convert a picture to RGB.

    Parameters
    ----------
    image
        A PIL image, or uint8 [height, width] or [height, width, 3].

    Raises
    ------
    TypeError
        It is something else.
    ValueError
        As :func:`as_rgb`.
    """
    if isinstance(image, np.ndarray):
        grey = image.ndim == 2
        if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)):
            raise TypeError(
                "image: wanted uint8 [height, width] or [height, width, 3], got "
                f"{image.dtype} {[*image.shape]}"
            )
        return Image.fromarray(image).convert("RGB")
    if not isinstance(image, Image.Image):
        raise TypeError(f"image: wanted a PIL image or an array, got {type(image).__name__}")
    return as_rgb(image)


def as_rgb(picture: Image.Image) -> Image.Image:
    """Convert a PIL image to RGB.

    Greys of 16 bits are scaled to 8; PIL alone makes those above 255 white. A transparent pixel
    shows its stored colour, as in transformers' processors.

    Raises
    ------
    ValueError
        Its greys are floats, or integers outside 16 bits; or PIL cannot convert its mode.

    Examples
    --------
    >>> deep = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    >>> np.asarray(as_rgb(deep))[0, :, 0].tolist()
    [0, 128, 255]
    """
    if picture.mode.startswith(("I", "F")):
        greys = np.asarray(picture)
        if picture.mode == "F" or greys.min() < 0 or greys.max() > 65535:
            raise ValueError(
                f"image: wanted greys of 8 or 16 bits, got {greys.dtype} from {greys.min():g} to "
                f"{greys.max():g}"
            )
        if picture.mode != "I" or greys.max() > 255:  # "I" may hold 8 bits as well
            picture = Image.fromarray((greys // 257).astype(np.uint8))
    if "transparency" in picture.info:  # some palettes do not convert to RGB at once
        picture = picture.convert("RGBA")
    try:
        return picture.convert("RGB")
    except ValueError as error:
        raise ValueError(f"image: wanted a picture that converts to RGB, got {error}") from error


def covered(picture: Image.Image, box: Box | None) -> Box:
    """The part of a picture that the patch grid covers: ``box``, or all of it without a box.

    Raises
    ------
    ValueError
        The box is not four finite numbers in pixels, is empty, or leaves the picture.
    """
    width, height = picture.size
    if box is None:
        return 0.0, 0.0, float(width), float(height)
    left, upper, right, lower = numbers = as_numbers("box", box, _BOX)
    check_pixels("box", [numbers], picture.size, _BOX)
    if not (0 <= left < right <= width and 0 <= upper < lower <= height):
        raise ValueError(f"box: wanted {_BOX} within {width} x {height}, got {box}")
    return float(left), float(upper), float(right), float(lower)
