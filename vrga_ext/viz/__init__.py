"""Pictures of where a model looks: maps, heads, layers and drift, and a page of one generation.

The drawing functions draw on a matplotlib ``Axes`` and return it. They do not use pyplot and show
nothing, so that both ``matplotlib.figure.Figure().subplots()`` and a notebook's axes work. The page
needs no matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vrga_ext._lazy import lazy
from vrga_ext.viz.grid import boundary, cells
from vrga_ext.viz.rects import paint, token_values

if TYPE_CHECKING:
    from vrga_ext.viz.drift import compare_drift, draw_drift
    from vrga_ext.viz.heads import draw_heads, draw_layers
    from vrga_ext.viz.looks import head_maps, per_token
    from vrga_ext.viz.maps import compare_maps, draw_map, draw_picture, draw_region, outline
    from vrga_ext.viz.page import html_page, write_html

__all__ = [
    "boundary",
    "cells",
    "compare_drift",
    "compare_maps",
    "draw_drift",
    "draw_heads",
    "draw_layers",
    "draw_map",
    "draw_picture",
    "draw_region",
    "head_maps",
    "html_page",
    "outline",
    "paint",
    "per_token",
    "token_values",
    "write_html",
]

# Imported when first used, so that the page can be written without matplotlib.
_NAMES = {
    **dict.fromkeys(("compare_drift", "draw_drift"), "vrga_ext.viz.drift"),
    **dict.fromkeys(("draw_heads", "draw_layers"), "vrga_ext.viz.heads"),
    **dict.fromkeys(
        ("compare_maps", "draw_map", "draw_picture", "draw_region", "outline"), "vrga_ext.viz.maps"
    ),
    **dict.fromkeys(("head_maps", "per_token"), "vrga_ext.viz.looks"),
    **dict.fromkeys(("html_page", "write_html"), "vrga_ext.viz.page"),
}
__getattr__, __dir__ = lazy(__name__, _NAMES)
