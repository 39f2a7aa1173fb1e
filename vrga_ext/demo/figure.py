"""The demo's picture: what VRGA found, and where the visual heads look without and with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_INK, _FAINT, _REGION = "#22272e", "#6b7280", "#d6007a"
_RIGHT, _WRONG = "#1a7f37", "#b42318"


@dataclass(frozen=True)
class View:
    """One answer and the visual heads' attention while it was written."""

    title: str
    answer: str
    is_right: bool | None  # None where the truth is not known
    attention: np.ndarray  # [rows, columns], share of all attention on each image token
    on_region: float  # share of all attention on the question-relevant tokens


@dataclass(frozen=True)
class Figure:
    """Everything the picture shows."""

    image: Image.Image
    question: str
    heads: int
    region: np.ndarray  # bool [rows, columns], T_q
    views: tuple[View, View]  # without VRGA, with VRGA
    moment: str  # when the attention was read
    footer: str


def draw(figure: Figure, output: Path) -> None:
    """Write the picture; the format follows the file's suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    rows, columns = figure.region.shape
    width, margin, gap, bar_width = 11.0, 0.25, 0.3, 0.85  # inches
    side = (width - 2 * margin - 2 * gap - bar_width) / 3
    height = min(max(side * figure.image.height / figure.image.width, 1.2), 2.0 * side)
    below, above = 0.85, 1.3
    total = height + below + above
    canvas = Canvas(figsize=(width, total), dpi=160)
    FigureCanvasAgg(canvas)
    axes = [
        canvas.add_axes(
            (
                (margin + i * (side + gap)) / width,
                below / total,
                side / width,
                height / total,
            )
        )
        for i in range(3)
    ]
    extent = (0, columns, rows, 0)
    picture = np.asarray(figure.image)

    axes[0].imshow(picture, extent=extent, interpolation="antialiased")
    count = int(figure.region.sum())
    _label(axes[0], "Question-relevant tokens found", f"{count} of {rows * columns} image tokens")
    _outline(axes[0], figure.region)

    top = max(float(view.attention.max()) for view in figure.views) or 1.0
    faded = picture.mean(-1, keepdims=True).repeat(3, -1) * 0.45 + 255 * 0.55
    mesh: Any = None
    for axis, view in zip(axes[1:], figure.views, strict=True):
        axis.imshow(faded.astype(np.uint8), extent=extent, interpolation="antialiased")
        strength = np.clip(view.attention / top, 0, 1)
        mesh = axis.imshow(
            view.attention,
            extent=extent,
            cmap="YlOrRd",
            vmin=0,
            vmax=top,
            alpha=np.where(strength > 0.01, 0.25 + 0.6 * strength, 0.0),
            interpolation="nearest",
        )
        _outline(axis, figure.region)
        share = f"{view.attention.sum():.0%} on the picture, {view.on_region:.0%} on the region"
        _label(axis, view.title, share)
        color = {None: _INK, True: _RIGHT, False: _WRONG}[view.is_right]
        mark = {None: "", True: " ✓", False: " ✗"}[view.is_right]
        axis.text(
            0.5, -0.05, f"“{view.answer}”{mark}", transform=axis.transAxes,
            ha="center", va="top", fontsize=11.5, color=color, fontweight="bold",
        )  # fmt: skip
    axes[0].text(
        0.5, -0.05, f"outlined: T$_q$, from {figure.heads} visual heads", ha="center", va="top",
        transform=axes[0].transAxes, fontsize=10, color=_REGION,
    )  # fmt: skip
    place = ((width - bar_width) / width, below / total, 0.14 / width, height / total)
    bar = canvas.colorbar(mesh, cax=canvas.add_axes(place))
    bar.set_label("attention per image token", fontsize=9, color=_FAINT)
    bar.ax.tick_params(labelsize=8, colors=_FAINT)
    bar.outline.set_visible(False)
    middle = (width - bar_width) / 2 / width
    lines = (
        (total - 0.15, "top", figure.question, 15, _INK, "bold"),
        (total - 0.48, "top", figure.moment, 10, _FAINT, "normal"),
        (0.12, "bottom", figure.footer, 10, _INK, "normal"),
    )
    for y, vertical, text, size, color, weight in lines:
        canvas.text(
            middle, y / total, text, ha="center", va=vertical, fontsize=size, color=color,
            fontweight=weight,
        )  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(output, facecolor="white")


def _label(axis: Any, title: str, subtitle: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#d0d7de")
    axis.set_title(title, fontsize=12.5, color=_INK, pad=21)
    axis.text(
        0.5, 1.02, subtitle, transform=axis.transAxes, ha="center", va="bottom",
        fontsize=9.5, color=_FAINT,
    )  # fmt: skip


def _outline(axis: Any, region: np.ndarray) -> None:
    """Draw the border of a set of cells."""
    padded = np.pad(region, 1)
    for row, column in np.argwhere(region):
        x, y = float(column), float(row)
        around = {
            ((x, x + 1), (y, y)): padded[row, column + 1],
            ((x, x + 1), (y + 1, y + 1)): padded[row + 2, column + 1],
            ((x, x), (y, y + 1)): padded[row + 1, column],
            ((x + 1, x + 1), (y, y + 1)): padded[row + 1, column + 2],
        }
        for (xs, ys), neighbour in around.items():
            if not neighbour:
                axis.plot(xs, ys, color=_REGION, linewidth=2.2, clip_on=False, zorder=5)
