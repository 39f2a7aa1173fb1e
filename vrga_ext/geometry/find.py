"""Where the image tokens of a picture lie: arguments, refusals, and what was found before."""

from __future__ import annotations

import itertools
import json
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from vrga_ext._arguments import as_numbers
from vrga_ext.geometry.cells import Cells, Shape
from vrga_ext.geometry.layout import token_cells
from vrga_ext.geometry.ramps import Size, read_elements
from vrga_ext.geometry.tokens import NONE, TILE, WHOLE, TokenGeometry
from vrga_ext.warning import VRGAWarning

_LARGEST_CACHE = 256  # geometries
_SLIVER = 0.01  # share of a token that has to show the picture
_WHOLE_SIDE = 0.9  # share of each side of the picture that a plane of all of it shows at least
# Fields of models in which learned queries or another attention read the patches: their tokens
# have no place, though their number may look like a grid's.
_PLACELESS = (
    "cross_attention_layers",
    "latent_query_num",
    "num_query_tokens",
    "perceiver_config",
    "projector_patch_to_query_dict",
    "qformer_config",
    "query_num",
    "resampler_n_latents",
    "sam_config",
)
_found: OrderedDict[Any, TokenGeometry | None] = OrderedDict()
_noticed: set[tuple[str, str]] = set()
_lock = threading.Lock()


def token_geometry(
    processor: Any,
    size: Sequence[int],
    num_tokens: int,
    /,
    *,
    config: Any = None,
    **images_kwargs: Any,
) -> TokenGeometry | None:
    """Where the image tokens of one picture lie in it.

    The processor runs on four pictures of the same size: black, white, and a ramp along each side.
    They tell which pixels each element of its output shows, however it stretches, pads, crops,
    tiles or turns patches into rows. The number of tokens tells how the elements are divided among
    them. Rectangles are within about 0.2 pixels; those of LLaVA's padding within 1 pixel.

    Parameters
    ----------
    processor
        An image processor of transformers, or a processor around one, whose defaults for pictures
        count then.
    size
        Width and height of the picture (pixels), as ``PIL.Image.size``; of a picture loaded from a
        path or URL after it was turned upright.
    num_tokens
        Number of the picture's image tokens in the prompt: those that stand for features, over all
        its runs, without the text between two tiles.
    config
        The model's configuration. It tells models whose tokens have no place, and how many tokens
        a tile has where tiles are put together again (LLaVA-NeXT, LLaVA-OneVision).
    **images_kwargs
        Options of the processor's call that were given with the picture.

    Returns
    -------
    TokenGeometry, or None
        None where the tokens have no place (learned queries), or where it cannot be established:
        their number does not add up, or the picture has a single pixel. A ``VRGAWarning`` says why,
        once for each processor class and reason. An even grid is never guessed.

    Raises
    ------
    ValueError
        ``size`` is not two integers of at least 1, or ``num_tokens`` not an integer of at least 1.
    TypeError
        ``processor`` processes no images.

    Examples
    --------
    >>> from vrga_ext.demo.answers import load_demo
    >>> _, processor = load_demo()
    >>> geometry = token_geometry(processor, (168, 168), 36)
    >>> geometry.rects[[0, 35]].tolist()
    [[0.0, 0.0, 28.0, 28.0], [140.0, 140.0, 168.0, 168.0]]
    """
    width, height = as_numbers("size", size, "(width, height)", whole=True)
    if min(width, height) < 1:
        raise ValueError(f"size: wanted (width, height) of at least 1, got {size!r}")
    (count,) = as_numbers("num_tokens", [num_tokens], "(number)", whole=True)
    if count < 1:
        raise ValueError(f"num_tokens: wanted at least 1, got {num_tokens!r}")
    image_processor = getattr(processor, "image_processor", processor)
    if not callable(image_processor) or not hasattr(image_processor, "preprocess"):
        raise TypeError(
            f"processor: wanted an image processor or a processor with one, got "
            f"{type(processor).__name__}"
        )
    options = _options(processor, image_processor, images_kwargs)
    placeless = _placeless(config)
    tile = _tile(config)
    key = (
        type(image_processor),
        _settings(image_processor),
        _text(options),
        (width, height),
        count,
        placeless,
        tile,
    )
    with _lock:
        if key in _found:
            _found.move_to_end(key)
            return _found[key]
    geometry, why = None, placeless and f"{placeless} in config: its image tokens have no place"
    if not why:
        geometry, why = _find(image_processor, (width, height), count, tile, options)
    if why:
        _notice(type(processor).__name__, why)
    with _lock:
        _found[key] = geometry
        while len(_found) > _LARGEST_CACHE:
            _found.popitem(last=False)
    return geometry


def _find(
    image_processor: Any, size: Size, count: int, tile: Shape | None, options: dict[str, Any]
) -> tuple[TokenGeometry | None, str]:
    """The geometry, or why there is none."""
    if size == (1, 1):
        return None, "a picture of one pixel"
    # A picture among several of a prompt may have no tiles: a separator behind the whole of it.
    pair = tile is not None and count == math.prod(tile) + 1
    elements = read_elements(image_processor, size, options, pair=pair)
    if elements is None or not elements.inside.any():
        return None, "the processor's output holds no pixels"
    if tile is None and elements.x.ndim == 5 and _pinpoints(image_processor):
        return None, "tiles that are put together again: config is needed"
    cells = token_cells(elements, size, count, tile)
    geometry = None if cells is None else _geometry(cells, size, count, tiled=tile is not None)
    if geometry is None:
        return None, "the number of image tokens does not fit the processor's output"
    return geometry, ""


def _geometry(cells: Cells, size: Size, count: int, *, tiled: bool) -> TokenGeometry | None:
    """Cut the cells to the picture, and find the level of each."""
    if len(cells.rects) != count:
        return None
    rects, plane = np.array(cells.rects), np.array(cells.plane)
    whole = (rects[:, 2:] - rects[:, :2]).prod(1)
    rects = rects.clip(0, [*size, *size])
    part = (rects[:, 2:] - rects[:, :2]).prod(1)
    shown = (part > _SLIVER * whole) & (np.array(cells.padding) < 1 - 1e-3)
    if not shown.any():
        return None
    rects[~shown] = np.nan
    level = np.full(count, WHOLE)
    for index in np.unique(plane):
        own = rects[(plane == index) & shown]
        if len(own) and (plane != index).any():
            sides = (own[:, 2:].max(0) - own[:, :2].min(0)) / size
            is_tile = sides.min() < _WHOLE_SIDE or (tiled and index > 0)
            level[plane == index] = TILE if is_tile else WHOLE
    level[~shown] = NONE
    return TokenGeometry(rects, level, size)


def _options(processor: Any, image_processor: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Keywords of the image processor's call: a processor around it has defaults of its own."""
    merge = getattr(processor, "_merge_kwargs", None)
    kinds = getattr(processor, "valid_processor_kwargs", None)
    if merge is None or kinds is None:
        return given
    tokenizer = getattr(processor, "tokenizer", None)
    merged = merge(
        kinds,
        tokenizer_init_kwargs=getattr(tokenizer, "init_kwargs", {}),
        **given,
    )["images_kwargs"]
    return {name: value for name, value in merged.items() if name != "return_tensors"}


def _placeless(config: Any) -> str:
    """The field that says that image tokens have no place, "" without one."""
    parts = [config, *(getattr(config, f"{name}_config", None) for name in ("vision", "text"))]
    for part, name in itertools.product(parts, _PLACELESS):
        if getattr(part, name, None) is not None:
            return name
    return ""


def _tile(config: Any) -> Shape | None:
    """Token rows and columns of a tile, of a model that puts tiles together again."""
    vision = getattr(config, "vision_config", None)
    if not _pinpoints(config) or vision is None:
        return None
    sides = _pair(vision.image_size), _pair(vision.patch_size)
    rows, columns = (side // patch for side, patch in zip(*sides, strict=True))
    return rows, columns


def _pinpoints(holder: Any) -> bool:
    return getattr(holder, "image_grid_pinpoints", None) is not None


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (value, value)


def _settings(image_processor: Any) -> str:
    to_dict = getattr(image_processor, "to_dict", None)
    return _text(to_dict() if to_dict is not None else vars(image_processor))


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=repr)


def _notice(processor: str, why: str) -> None:
    """Warn once for each processor class and reason."""
    with _lock:
        if (processor, why) in _noticed:
            return
        _noticed.add((processor, why))
    warnings.warn(f"{processor}: image tokens without places ({why})", VRGAWarning, stacklevel=3)
