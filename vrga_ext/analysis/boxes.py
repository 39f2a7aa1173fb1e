"""From boxes and masks in image pixels to a capture's image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vrga_ext._arguments import BOX, Box, as_array, as_numbers, as_tuples
from vrga_ext.captures import Capture
from vrga_ext.geometry import TokenGeometry, token_geometry
from vrga_ext.selection import Span

Size = tuple[int, int]


def relevant_tokens(
    capture: Capture,
    boxes: Sequence[Sequence[Box]] | None = None,
    image_sizes: Sequence[Any] | None = None,
    *,
    processor: Any,
    config: Any = None,
    masks: Sequence[Any] | None = None,
    image: int = 0,
    level: int | None = None,
    min_coverage: float = 0.5,
) -> Tensor:
    """Image tokens of a capture's samples that belong to each sample's boxes, or to its mask.

    Parameters
    ----------
    capture
        Of S samples and n image tokens.
    boxes
        A list of boxes for each prompt of the batch. A prompt with an empty list has no region, and
        needs no image.
    image_sizes
        Width and height of the image in pixels for each prompt of the batch; a list of them for a
        prompt with several images. Masks of prompts with one image have its size already.
    processor, config
        The model's, as in :func:`vrga_ext.geometry.token_geometry`.
    masks
        Instead of boxes: a mask for each prompt of the batch, or None for no region.
    image
        Index of the image among a sample's images.
    level
        0 for tokens of the whole picture alone, 1 for those of its tiles; both without it.
    min_coverage
        As in :meth:`vrga_ext.geometry.TokenGeometry.box_tokens`.

    Returns
    -------
    bool [S, n]

    Raises
    ------
    ValueError
        There is not one entry for each prompt, no such image, it is not known where its tokens lie,
        or a box or mask does not fit it.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> width, height = samples[0].image.size
    >>> box = (0, 0, width / 2, height / 3)  # of 6 x 6 tokens
    >>> sizes = [(width, height)]
    >>> relevant_tokens(recording.last, [[box]], sizes, processor=processor).sum()
    tensor(6)
    """
    if (boxes is None) == (masks is None) or (boxes is not None and image_sizes is None):
        arguments = {"boxes": boxes, "image_sizes": image_sizes, "masks": masks}
        got = ", ".join(name for name, value in arguments.items() if value is not None) or "none"
        raise ValueError(f"boxes, image_sizes, masks: wanted the first two, or masks, got {got}")
    _check_count(capture, boxes=boxes, image_sizes=image_sizes, masks=masks)
    if boxes is not None:
        per_prompt: Sequence[Any] = [as_tuples("boxes", own, BOX) or None for own in boxes]
    else:
        assert masks is not None
        per_prompt = masks
    chosen = torch.zeros(capture.image_positions.shape, dtype=torch.bool, device="cpu")
    for sample, spans in enumerate(capture.images):
        prompt = sample // capture.copies
        region = per_prompt[prompt]
        if region is None:
            continue
        if image_sizes is not None:
            sizes = _sizes(image_sizes[prompt])
        else:
            height, width = _mask_shape(region)
            sizes = [(width, height)]
        if not spans:
            raise ValueError(f"image: wanted one of 0 of sample {sample}, got {image}")
        if not 0 <= image < len(sizes):
            raise ValueError(f"image: wanted one of {len(sizes)} of sample {sample}, got {image}")
        indices = picture_tokens(spans, sizes)[image]
        geometry = _geometry(processor, config, sizes[image], indices, sample)
        if boxes is not None:
            own = geometry.box_tokens(region, min_coverage=min_coverage, level=level)
        else:
            own = geometry.mask_tokens(region, min_coverage=min_coverage, level=level)
        chosen[sample, indices[own]] = True
    return chosen


def token_levels(
    capture: Capture, image_sizes: Sequence[Any], *, processor: Any, config: Any = None
) -> Tensor:
    """Level of each image token: of the whole picture, or of a tile.

    Parameters
    ----------
    capture
        Of S samples and n image tokens.
    image_sizes, processor, config
        As in :func:`relevant_tokens`; an empty list for a prompt without an image.

    Returns
    -------
    int64 [S, n]
        As :attr:`vrga_ext.geometry.TokenGeometry.level`: 0 for the whole picture, 1 for a tile, -1
        for a token that shows nothing of the picture.

    Raises
    ------
    ValueError
        There is not one entry for each prompt, or it is not known where tokens lie.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     _ = model.generate(**prepare(processor, samples, steps=0), max_new_tokens=1)
    >>> token_levels(recording.last, [samples[0].image.size], processor=processor).sum()
    tensor(0)
    """
    _check_count(capture, image_sizes=image_sizes)
    levels = torch.full(capture.image_positions.shape, -1, device="cpu")
    for sample, spans in enumerate(capture.images):
        sizes = _sizes(image_sizes[sample // capture.copies])
        for size, indices in zip(sizes, picture_tokens(spans, sizes), strict=True):
            geometry = _geometry(processor, config, size, indices, sample)
            levels[sample, indices] = torch.tensor(geometry.level)
    return levels


def picture_tokens(spans: Sequence[Span], sizes: Sequence[Size]) -> list[np.ndarray]:
    """Indices of each picture's tokens among a sample's image tokens.

    A picture may have several runs of tokens, and so several spans: one a tile, or one a row.

    Parameters
    ----------
    spans
        Of the sample.
    sizes
        Of its pictures (pixels).

    Raises
    ------
    ValueError
        It is not known which spans belong to which picture.

    Examples
    --------
    >>> tiles = [Span(0, 2, 0, None), Span(2, 3, 1, None)]
    >>> picture_tokens(tiles, [(8, 8)])
    [array([0, 1, 3, 4])]
    """
    runs = [np.arange(span.start + span.lead, span.start + span.length) for span in spans]
    each = len(runs) // max(len(sizes), 1)
    whole = each * len(sizes) == len(runs) and each >= min(len(sizes), 1)
    if not whole or (each > 1 and len(set(sizes)) > 1):
        raise ValueError(
            f"image_sizes: wanted one for each image, or images of one size, got {len(sizes)} for "
            f"{len(runs)} runs of image tokens"
        )
    return [np.concatenate(runs[i * each : (i + 1) * each]) for i in range(len(sizes))]


def _geometry(
    processor: Any, config: Any, size: Size, indices: np.ndarray, sample: int
) -> TokenGeometry:
    geometry = token_geometry(processor, size, len(indices), config=config)
    if geometry is None:
        width, height = size
        raise ValueError(
            f"image: wanted one whose tokens have known places, got one of sample {sample} with "
            f"{len(indices)} tokens for {width} x {height} pixels; image_sizes has one size for "
            "each image of a prompt"
        )
    return geometry


def _check_count(capture: Capture, **arguments: Sequence[Any] | None) -> None:
    count = len(capture.regions)
    for name, given in arguments.items():
        if given is not None and len(given) != count:
            raise ValueError(
                f"{name}: wanted one for each prompt of the batch ({count}), got {len(given)}"
            )


def _sizes(value: Any) -> list[Size]:
    """Sizes of one prompt's pictures, from one size or a list of them."""
    several = isinstance(value, Sequence) and all(isinstance(own, Sequence) for own in value)
    return [_size(own) for own in (value if several else [value])]


def _size(value: Any) -> Size:
    width, height = as_numbers("image_sizes", value, "(width, height)", whole=True)
    if min(width, height) < 1:
        raise ValueError(f"image_sizes: wanted (width, height) of at least 1, got {value!r}")
    return width, height


def _mask_shape(mask: Any) -> tuple[int, int]:
    shape = as_array(mask).shape
    if len(shape) != 2:
        raise ValueError(f"mask: wanted [height, width], got {[*shape]}")
    return shape[0], shape[1]
