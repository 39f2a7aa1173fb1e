"""Colours, frames and titles of all drawings. Imports matplotlib."""

from __future__ import annotations

from typing import Literal

from vrga_ext.viz.texts import escaped

try:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "vrga_ext.viz draws with matplotlib, which is not installed: pip install 'vrga_ext[viz]'"
    ) from error

INK, FAINT, FRAME = "#22272e", "#6b7280", "#d0d7de"
REGION = "#d6007a"  # T_q, in every drawing
RIGHT, WRONG = "#1a7f37", "#b42318"
MAP = "YlOrRd"  # attention
# Distinct for colour-blind readers as well (Okabe and Ito).
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

__all__ = [
    "Axes",
    "Figure",
    "LineCollection",
    "even_line",
    "frame",
    "heading",
    "legend",
    "plain",
    "plot_area",
]


def heading(axes: Axes, title: str, subtitle: str = "") -> None:
    """A title above the axes, and a smaller line between the two."""
    axes.set_title(title, fontsize=12.5, color=INK, pad=21 if subtitle else 8)
    if subtitle:
        axes.annotate(
            subtitle, (0.5, 1), (0, 4), xycoords="axes fraction", textcoords="offset points",
            ha="center", va="bottom", fontsize=9.5, color=FAINT,
        )  # fmt: skip


def frame(axes: Axes) -> None:
    """A thin frame without ticks, as a picture has."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FRAME)


def plot_area(axes: Axes, xlabel: str, ylabel: str, whole_x: bool = False) -> None:
    """Labels, a light grid, and no frame at the top and at the right."""
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=FAINT, labelsize=9)
    axes.grid(color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FRAME)
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


Place = Literal["best", "upper right", "lower left"]


def legend(axes: Axes, place: Place = "best") -> None:
    """A legend without a frame, by default where it covers least."""
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc=place)


def even_line(axes: Axes, at: float) -> None:
    """A line at the value of attention spread evenly over the image."""
    axes.axhline(at, color=FAINT, linewidth=1, linestyle=":", zorder=1, label="even attention")


def plain(text: str) -> str:
    """A model's text for matplotlib: without formulas, line breaks and control characters."""
    return escaped(text.replace("\n", "↵").replace("\t", "⇥")).replace("$", r"\$")
