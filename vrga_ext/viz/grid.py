"""From values over the image tokens to the cells of a picture, with numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vrga_ext._arguments import as_array, as_numbers, check_pixels
from vrga_ext.geometry import TokenGeometry

if TYPE_CHECKING:
    from vrga_ext.selection import Span

Picture = Image.Image | np.ndarray
Box = tuple[float, float, float, float]  # left, upper, right, lower (pixels)
_BOX = "(left, upper, right, lower)"
_RASTER = 1024  # cells along the longer side of a painted picture


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


def token_values(
    values: Any, spans: Sequence[Span], geometries: Sequence[TokenGeometry]
) -> list[np.ndarray]:
    """Divide values over the image tokens among pictures, each of one run of tokens or of several.

    Parameters
    ----------
    values : [..., n]
        One value per image token, in the order of ``region.image_positions``; a tensor or an array.
    spans
        Of the sample: ``region.images``.
    geometries
        One for each picture.

    Returns
    -------
    list of array [..., m]
        One value per token of each picture.

    Raises
    ------
    ValueError
        The pictures do not have as many tokens as the spans, or the values do not reach as far.

    Examples
    --------
    >>> from vrga_ext.selection import Span
    >>> geometry = TokenGeometry(np.array([(0, 0, 4, 8), (4, 0, 8, 8)]), np.zeros(2), (8, 8))
    >>> token_values([0.5, 0.1, 0.2], [Span(0, 3, 1, None)], [geometry])
    [array([0.1, 0.2])]
    """
    array = as_array(values)
    end = max((span.start + span.length for span in spans), default=0)
    if array.ndim == 0 or array.shape[-1] < end:
        raise ValueError(f"values: wanted [..., n] with n at least {end}, got {[*array.shape]}")
    own = [np.arange(span.start + span.lead, span.start + span.length) for span in spans]
    indices = np.concatenate([np.zeros(0, dtype=int), *own])
    lengths = [len(geometry) for geometry in geometries]
    if sum(lengths) != len(indices):
        raise ValueError(
            f"geometry: wanted those of {len(indices)} image tokens, got {lengths} tokens"
        )
    parts = np.split(indices, np.cumsum(lengths)[:-1])
    return [array[..., part] for part in parts]


def paint(values: Any, geometry: TokenGeometry, level: int | None = None) -> np.ndarray:
    """Paint the tokens of one picture where they lie: the whole picture first, tiles over it.

    Parameters
    ----------
    values : float [n]
        One per token of the picture.
    geometry
        Of the picture.
    level
        0 or 1: the tokens of this level alone.

    Returns
    -------
    float array [height, width]
        A raster over the picture, 1024 cells along its longer side; NaN where no token lies.

    Examples
    --------
    >>> geometry = TokenGeometry(np.array([(0, 0, 4, 8), (4, 0, 6, 8)]), np.zeros(2), (8, 8))
    >>> paint([0.5, 0.1], geometry)[0, ::256]
    array([0.5, 0.5, 0.1, nan])
    """
    array = as_array(values).astype(float)
    (width, height), scale = raster_size(geometry.size)
    raster = np.full((height, width), np.nan)
    for own in (0, 1) if level is None else (level,):
        for token in np.flatnonzero(geometry.level == own):
            left, top, right, bottom = np.rint(geometry.rects[token] * scale).astype(int)
            raster[top:bottom, left:right] = array[token]
    return raster


def raster_size(size: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
    """Width and height of the raster over a picture, in cells; and cells per pixel of rectangles.

    Examples
    --------
    >>> raster_size((512, 128))
    ((1024, 256), array([2., 2., 2., 2.]))
    """
    width, height = (max(round(side * _RASTER / max(size)), 1) for side in size)
    return (width, height), np.array([width, height] * 2) / [*size, *size]


def rect_boundary(rects: np.ndarray) -> np.ndarray:
    """Border of the union of rectangles, as segments.

    Parameters
    ----------
    rects : float [k, 4]
        Left, top, right and bottom (pixels).

    Returns
    -------
    float array [m, 2, 2]
        Both ends (x, y) of each segment (pixels).

    Examples
    --------
    >>> rect_boundary(np.array([[0, 0, 4, 8], [4, 0, 6, 8]])).max((0, 1)).tolist()
    [6.0, 8.0]
    """
    near = np.round(np.asarray(rects, dtype=float), 2)  # sides of neighbours differ by a rounding
    xs, columns = np.unique(near[:, [0, 2]], return_inverse=True)
    ys, rows = np.unique(near[:, [1, 3]], return_inverse=True)
    marked = np.zeros((max(len(ys) - 1, 0), max(len(xs) - 1, 0)), dtype=bool)
    for (top, bottom), (left, right) in zip(
        rows.reshape(-1, 2), columns.reshape(-1, 2), strict=True
    ):
        marked[top:bottom, left:right] = True
    segments = boundary(marked)
    if not len(segments):
        return segments.astype(float)
    return np.stack([xs[segments[..., 0]], ys[segments[..., 1]]], -1)


def as_geometries(
    geometry: TokenGeometry | Sequence[TokenGeometry], pictures: Sequence[Image.Image]
) -> list[TokenGeometry]:
    """One geometry for each picture.

    Raises
    ------
    ValueError
        There are not as many, or one is of a picture of another size.
    """
    given = [geometry] if isinstance(geometry, TokenGeometry) else list(geometry)
    if len(given) != len(pictures):
        raise ValueError(
            f"geometry: wanted one for each of {len(pictures)} pictures, got {len(given)}"
        )
    for own, picture in zip(given, pictures, strict=True):
        if own.size != picture.size:
            raise ValueError(
                f"geometry: wanted that of a picture of {picture.size[0]} x {picture.size[1]} "
                f"pixels, got one of {own.size[0]} x {own.size[1]}"
            )
    return given


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
