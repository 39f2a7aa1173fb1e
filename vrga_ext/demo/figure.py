"""The demo's drawing: selected tokens, and the visual heads' attention on the picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vrga_ext.files import replacing
from vrga_ext.viz import compare_maps, draw_picture, style

if TYPE_CHECKING:
    from matplotlib.text import Text


@dataclass(frozen=True)
class View:
    """One answer and the visual heads' attention while it was written.

    Attributes
    ----------
    title : str
        Heading of the map.
    answer : str
        What the model wrote.
    is_right : bool, optional
        Whether the answer is right; None where that is not known.
    attention : float array [rows, columns]
        Share of all attention on each image token.
    """

    title: str
    answer: str
    is_right: bool | None
    attention: np.ndarray


@dataclass(frozen=True)
class Figure:
    """Everything the drawing shows.

    Attributes
    ----------
    image : PIL.Image.Image
        The picture.
    question : str
        What was asked.
    heading, caption : str
        Above and below the picture with the region.
    region : bool [rows, columns]
        Boosted tokens before they are widened, T_q or those of a box.
    views : (View, View)
        Without VRGA, and with it.
    moment : str
        When the attention was read.
    footer : str
        Line at the bottom.
    """

    image: Image.Image
    question: str
    heading: str
    caption: str
    region: np.ndarray
    views: tuple[View, View]
    moment: str
    footer: str


def draw(figure: Figure, output: Path) -> None:
    """Write the picture; the format follows the file's suffix."""
    width, margin, gap, bar_width = 11.0, 0.25, 0.3, 0.85  # inches
    side = (width - 2 * margin - 2 * gap - bar_width) / 3
    height = min(max(side * figure.image.height / figure.image.width, 1.2), 2.0 * side)
    question = [style.plain(line) for line in wrap(figure.question, 80)]
    moment = wrap(figure.moment, 130)
    below, above = 0.85, 0.88 + 0.25 * len(question) + 0.17 * len(moment)
    total = height + below + above
    canvas = style.Figure(figsize=(width, total), dpi=160)
    found, *pair = (
        canvas.add_axes(
            (
                (margin + i * (side + gap)) / width,
                below / total,
                side / width,
                height / total,
            )
        )
        for i in range(3)
    )
    draw_picture(found, figure.image, region=figure.region)
    count = f"{int(figure.region.sum())} of {figure.region.size} image tokens"
    style.heading(found, figure.heading, count)
    _below(found, side, figure.caption, style.REGION, 10)

    before, after = figure.views
    compare_maps(
        (pair[0], pair[1]),
        figure.image,
        before.attention,
        after.attention,
        region=figure.region,
        titles=(before.title, after.title),
    )
    for axes, view in zip(pair, figure.views, strict=True):
        color = {None: style.INK, True: style.RIGHT, False: style.WRONG}[view.is_right]
        mark = {None: "", True: " ✓", False: " ✗"}[view.is_right]
        _below(axes, side, f"“{style.plain(view.answer)}”{mark}", color, 11.5, "bold")
    place = ((width - bar_width) / width, below / total, 0.14 / width, height / total)
    bar = canvas.colorbar(pair[1].images[-1], cax=canvas.add_axes(place))
    bar.set_label("attention per image token", fontsize=9, color=style.FAINT)
    bar.ax.tick_params(labelsize=8, colors=style.FAINT)
    bar.outline.set_visible(False)
    middle = (width - bar_width) / 2
    lines = (
        (total - 0.15, "top", "\n".join(question), 15, style.INK, "bold"),
        (total - 0.23 - 0.25 * len(question), "top", "\n".join(moment), 10, style.FAINT, "normal"),
        (0.12, "bottom", figure.footer, 10, style.INK, "normal"),
    )
    for y, vertical, text, size, color, weight in lines:
        written = canvas.text(
            middle / width, y / total, text, ha="center", va=vertical, fontsize=size, color=color,
            fontweight=weight,
        )  # fmt: skip
        _fit(written, 2 * middle - margin)
    with replacing(output) as file:
        canvas.savefig(file, format=output.suffix[1:].lower(), facecolor="white")


def _below(
    axes: style.Axes, width: float, text: str, color: str, size: float, weight: str = "normal"
) -> None:
    """Write under the picture as it is drawn; a thin one makes its axes smaller."""
    written = axes.annotate(
        text, (0.5, 0), (0, -10.9), xycoords="axes fraction", textcoords="offset points",
        ha="center", va="top", fontsize=size, color=color, fontweight=weight,
    )  # fmt: skip
    _fit(written, width)


def _fit(text: Text, width: float) -> None:
    """Make a text smaller if it is wider than ``width`` inches."""
    figure = text.get_figure(root=True)
    assert figure is not None
    drawn = text.get_window_extent().width / figure.dpi
    text.set_fontsize(float(text.get_fontsize()) * min(1.0, width / drawn))
