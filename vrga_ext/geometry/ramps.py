"""What an image processor makes of pictures of ramps: where each output element comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Size = tuple[int, int]  # width, height (pixels)
_GOLDEN = 0.6180339887  # multiples of it, modulo 1, are spread evenly


@dataclass(frozen=True)
class Elements:
    """Places of the elements of a processor's pixel values, in their own layout.

    Attributes
    ----------
    x, y : float32 [...]
        Place in the picture (pixels); NaN where an element shows nothing of it.
    inside : bool [...]
        Elements that show the picture, not padding.
    side : list of integer arrays
        The other outputs: sizes, positions, indices of patches.
    """

    x: np.ndarray
    y: np.ndarray
    inside: np.ndarray
    side: list[np.ndarray]


def read_elements(
    image_processor: Any, size: Size, options: dict[str, Any], *, pair: bool = False
) -> Elements | None:
    """Run the processor on black, white, and a ramp along each side.

    An element that black and white leave the same shows padding. For the others
    ``(ramp - black) / (white - black)`` is their place along the ramp, whatever the layout, the
    order of the channels, the normalisation and the dtype.

    Parameters
    ----------
    image_processor
        Of transformers, or one that is called like those.
    size
        Width and height of the picture (pixels).
    options
        Keywords of the call.
    pair
        Read the first of two pictures of one prompt: some processors tile a single one alone.

    Returns
    -------
    Elements, or None if no output holds pixels.
    """
    outputs = [_outputs(image_processor, grey, options, pair) for grey in _pictures(size)]
    floats = [
        name for name, value in outputs[0].items() if value.dtype.kind == "f" and value.ndim > 1
    ]
    if not floats:
        return None
    name = max(floats, key=lambda name: (name == "pixel_values", outputs[0][name].size))
    black, white, ramp_x, ramp_y = (output[name] for output in outputs)
    if not black.shape == white.shape == ramp_x.shape == ramp_y.shape:
        return None
    span = white - black
    inside = np.abs(span) > 0.5 * np.abs(span).max()  # half: resampling smears the borders
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (np.where(inside, (ramp - black) / span, np.nan) for ramp in (ramp_x, ramp_y))
    side = [value for value in outputs[0].values() if value.dtype.kind in "iu"]
    return Elements(x * np.float32(size[0]), y * np.float32(size[1]), inside, side)


def _pictures(size: Size) -> list[np.ndarray]:
    """Black, white, a ramp across and a ramp down, uint8 [height, width] each.

    The ramps are dithered, so that their means are finer than 8 bits.
    """
    width, height = size
    across, down = np.arange(width), np.arange(height)[:, None]
    ramp_x = (across + 0.5) / width * 255 + down * _GOLDEN % 1
    ramp_y = (down + 0.5) / height * 255 + across * _GOLDEN % 1
    flat = np.zeros((height, width))
    return [np.floor(grey).astype(np.uint8) for grey in (flat, flat + 255, ramp_x, ramp_y)]


def _outputs(
    image_processor: Any, grey: np.ndarray, options: dict[str, Any], pair: bool
) -> dict[str, np.ndarray]:
    picture = Image.fromarray(grey).convert("RGB")
    images = [[picture, picture]] if pair else [picture]
    output = image_processor(images=images, return_tensors="pt", **options)
    return {
        name: _array(value)[: 1 if pair else None]
        for name, value in output.items()
        if len(getattr(value, "shape", ()))
    }


def _array(value: Any) -> np.ndarray:
    """A numpy array, floats as float32: numpy has no bfloat16."""
    is_float = getattr(value, "is_floating_point", lambda: False)()
    return np.asarray(value.float().cpu() if is_float else value)
