"""One generation as a page: the picture, the answer, and where the model looked at each token.

The page is one file with picture, maps and script inside, and needs no network. Its template is
``page.html``; jinja escapes every text in it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, Template
from torch import Tensor

from vrga_ext._arguments import as_array
from vrga_ext.analysis import head_mask, rrar
from vrga_ext.analysis.heads import select_heads
from vrga_ext.captures import Capture
from vrga_ext.files import replacing
from vrga_ext.geometry import TokenGeometry
from vrga_ext.region import HeadIndex
from vrga_ext.viz.grid import Box, Picture, as_picture, cells
from vrga_ext.viz.looks import head_maps, per_token
from vrga_ext.viz.panels import grid_panel, rect_panels
from vrga_ext.viz.rects import as_geometries
from vrga_ext.viz.texts import escaped, visible


def html_page(
    capture: Capture,
    image: Picture | Sequence[Picture],
    tokens: Sequence[str],
    *,
    title: str = "Where the model looks",
    sample: int = 0,
    heads: Sequence[HeadIndex] | None = None,
    region: Tensor | np.ndarray | None = None,
    box: Box | None = None,
    geometry: TokenGeometry | Sequence[TokenGeometry] | None = None,
) -> str:
    """A page of one generation: pointing at a token shows where the heads looked.

    The page is self-contained HTML for light and dark screens: it needs no network and no script
    from elsewhere, and escapes every text. ``#token=5`` at the end of its address opens it at that
    token.

    Parameters
    ----------
    capture
        The generation, captured with ``rows=True`` or ``rows="all"``. The first token has a map if
        ``prompt_rows`` captured the prompt's last token.
    image
        The prompt's picture, or a list of all of them; PIL or uint8 [height, width(, 3)].
    tokens
        Texts of the answer's tokens, at least one.
    title
        Heading of the page: the question, for example.
    sample
        Index of one of the capture's samples.
    heads
        (layer, head) pairs whose mean is shown; the sample's visual heads without it.
    region : bool [n], optional
        Image tokens to outline and to measure RRAR on, for example one sample of
        :func:`vrga_ext.analysis.relevant_tokens`. The question-relevant tokens T_q without it.
    box
        As in :func:`draw_map`, for all pictures.
    geometry
        Where the tokens of the picture lie, or of each picture in a list, from
        :func:`vrga_ext.geometry.token_geometry`. Maps are painted by rectangles then, those of the
        whole picture and of its tiles beside each other; padding is not shown.

    Returns
    -------
    str
        The page.

    Raises
    ------
    ValueError
        The capture holds statistics only; a sample, a head, a picture or the region does not fit
        it; an image's tokens form no rectangle and there is no geometry, or it does not fit; or
        there are no tokens, or more than were captured.
    TypeError
        ``image`` has something else than pictures, or ``tokens`` something else than texts.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=7)
    >>> with vrga_ext.capture(model, processor=processor, rows=True) as recording:
    ...     answer = generate(model, prepare(processor, samples, steps=0), steps=0)
    >>> tokens = processor.tokenizer.convert_ids_to_tokens(answer[0].tolist())
    >>> page = html_page(recording.last, samples[0].image, tokens)
    >>> page.count('class="token"') == len(tokens)
    True
    """
    pictures = [as_picture(one) for one in (image if isinstance(image, list | tuple) else [image])]
    _check_tokens(tokens)
    named = None if heads is None else [(int(layer), int(head)) for layer, head in heads]
    maps = per_token(
        head_maps(capture, sample=sample, heads=named), capture, len(tokens), sample=sample
    )  # [T, n]
    spans = capture.images[sample]
    if geometry is None and len(pictures) != len(spans):
        raise ValueError(f"image: wanted {len(spans)} pictures, got {len(pictures)}")
    found = capture.region(sample)
    positions = capture.image_positions[sample]
    marked = as_array(torch.isin(positions, found.focus) if region is None else region)
    if marked.shape != positions.shape or marked.dtype != bool:
        raise ValueError(
            f"region: wanted bool {[*positions.shape]}, got {marked.dtype} {[*marked.shape]}"
        )
    shown = found.visual_heads if named is None else named
    strips = _strips(capture, sample, shown, marked, len(tokens))
    outlined = marked[: maps.shape[1]]
    if geometry is None:
        panels = [
            grid_panel(picture, cells(np.arange(maps.shape[1]), span), outlined, box)
            for picture, span in zip(pictures, spans, strict=True)
        ]
    else:
        panels = rect_panels(pictures, as_geometries(geometry, pictures), spans, outlined)
    patches = maps[:, np.concatenate([panel.tokens for panel in panels])]  # [T, patches of all]
    top = float(np.nanmax(patches, initial=0)) or 1.0
    data = {
        "maps": base64.b64encode(
            np.rint(np.nan_to_num(patches) / top * 255).astype(np.uint8).tobytes()
        ).decode(),
        "top": top,
        "picture": _numbers(maps.sum(1)),
        "region": _numbers(maps[:, outlined].sum(1)) if outlined.any() else None,
        "strips": [strip.values for strip in strips],
        "rects": [panel.rects for panel in panels],
    }
    return _template().render(
        title=escaped(" ".join(title.split())),
        pictures=[panel.shown for panel in panels],
        tokens=_tokens(tokens, strips[0]),
        strips=strips,
        outlined=bool(outlined.any()),
        region_given=region is not None,
        heads=shown,
        heads_given=named is not None,
        data=data,
    )


def write_html(
    path: str | PathLike[str],
    capture: Capture,
    image: Picture | Sequence[Picture],
    tokens: Sequence[str],
    **options: Any,
) -> Path:
    """Write the page of one generation to a file.

    Parameters
    ----------
    path
        Of the file; an existing one is replaced once the new one is whole.
    capture, image, tokens, **options
        As in :func:`html_page`.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ValueError, TypeError
        As :func:`html_page`; nothing is written then.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=7)
    >>> with vrga_ext.capture(model, processor=processor, rows=True) as recording:
    ...     answer = generate(model, prepare(processor, samples, steps=0), steps=0)
    >>> tokens = processor.tokenizer.convert_ids_to_tokens(answer[0].tolist())
    >>> with TemporaryDirectory() as folder:
    ...     path = write_html(f"{folder}/page.html", recording.last, samples[0].image, tokens)
    ...     path.stat().st_size < 200_000
    True
    """
    page = html_page(capture, image, tokens, **options)
    target = Path(path)
    with replacing(target) as file:
        file.write_text(page, encoding="utf-8")
    return target


def _check_tokens(tokens: Sequence[str]) -> None:
    others = {type(text).__name__ for text in tokens if not isinstance(text, str)}
    if isinstance(tokens, str) or others:
        got = ", ".join(sorted(others)) or "one text"
        raise TypeError(f"tokens: wanted a list of texts, got {got}")
    if not len(tokens):
        raise ValueError("tokens: wanted at least one, got none")


@dataclass(frozen=True)
class _Strip:
    """One quantity over the answer."""

    name: str
    values: list[float | None]  # [T]
    top: str
    bars: str  # an SVG path in a box of T x 1
    even: str  # height of attention spread evenly over the image, "" where that has no meaning


def _strips(
    capture: Capture, sample: int, heads: Sequence[HeadIndex], marked: np.ndarray, count: int
) -> list[_Strip]:
    """RRAR, R_img and H_img at each of ``count`` tokens, means over the heads."""
    mask = head_mask(heads, capture.layers, capture.image_ratio.shape[2])
    shown = select_heads(capture, mask, sample)

    def mean(values: Tensor) -> np.ndarray:  # [1, 1, k, R] -> [T]
        return per_token(values[0, 0].nanmean(0), capture, count, sample=sample)

    when = " before the boost" if capture.gate.any() else ""
    strips = [
        _strip(f"R_img, image attention ratio{when}", mean(shown.image_ratio)),
        _strip(f"H_img, image attention entropy{when} (nats)", mean(shown.image_entropy)),
    ]
    if marked.any():
        ratio = mean(rrar(shown, marked[None]))
        strips.insert(0, _strip("RRAR, aim at the outlined region (dashed: even)", ratio, even=1.0))
    return strips


def _strip(name: str, values: np.ndarray, even: float = 0.0) -> _Strip:
    top = max(float(np.nanmax(values, initial=0)), even) or 1.0
    heights = np.nan_to_num(values) / top
    bars = "".join(f"M{i} 1v{-h:.3f}h1V1z" for i, h in enumerate(heights) if h > 0)
    return _Strip(
        name, _numbers(values), f"{top:.3g}", bars, f"{1 - even / top:.3f}" if even else ""
    )


def _tokens(tokens: Sequence[str], strip: _Strip) -> list[dict[str, Any]]:
    top = max((value for value in strip.values if value is not None), default=0) or 1.0
    return [
        {
            "shown": visible(text),
            "breaks": "\n" in text,
            "aim": round(100 * (value or 0) / top),
        }
        for text, value in zip(tokens, strip.values, strict=True)
    ]


def _numbers(values: np.ndarray) -> list[float | None]:
    """Values for JSON: four digits, null for NaN."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


@cache
def _template() -> Template:
    text = files("vrga_ext.viz").joinpath("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(text)
