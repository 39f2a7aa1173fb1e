"""Heads and layers: which heads look at the picture with focus, and RRAR by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vrga_ext._arguments import as_array
from vrga_ext.analysis import head_mask, linear_fit
from vrga_ext.region import HeadIndex
from vrga_ext.viz import style


def draw_heads(
    axes: style.Axes,
    image_ratio: Any,
    image_entropy: Any,
    *,
    selected: Sequence[HeadIndex] = (),
    layers: Sequence[int] | None = None,
    fit: bool = True,
) -> style.Axes:
    """Every head by the entropy (H_img) and the strength (R_img) of its attention on the image.

    Paper section 3 reports ``R_img ≈ k H_img + b`` over heads; the line and Pearson's r are fitted
    to all heads in the drawing.

    Parameters
    ----------
    axes
        Where to draw.
    image_ratio, image_entropy : [L, H]
        R_img (no unit) and H_img (nats); a head needs both finite to be drawn.
    selected
        (layer, head) pairs to mark, ``region.visual_heads`` for example.
    layers
        The model's index of each of the L layers, ``region.layers``; 0 ... L - 1 without it.
    fit
        Draw the line.

    Returns
    -------
    Axes
        ``axes``.

    Raises
    ------
    ValueError
        The shapes differ or are not [L, H], ``layers`` does not have L entries, a selected head
        does not exist, or no head is finite.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> ratio, entropy = np.array([[0.2, 0.4], [0.6, 0.9]]), np.array([[1.0, 2.0], [3.0, 0.5]])
    >>> axes = draw_heads(Figure().subplots(), ratio, entropy, selected=[(1, 1)])
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['3 other heads', '1 selected head', 'fit: R = -0.04 H + 0.60, r = -0.16']
    """
    ratio, entropy = as_array(image_ratio).astype(float), as_array(image_entropy).astype(float)
    if ratio.ndim != 2 or ratio.shape != entropy.shape:
        raise ValueError(
            "image_ratio, image_entropy: wanted one shape [L, H], got "
            f"{[*ratio.shape]} and {[*entropy.shape]}"
        )
    order = range(len(ratio)) if layers is None else layers
    if len(order) != len(ratio):
        raise ValueError(f"layers: wanted {len(ratio)} entries, got {len(order)}")
    marked = head_mask(selected, order, ratio.shape[1]).numpy()
    finite = np.isfinite(ratio) & np.isfinite(entropy)
    if not finite.any():
        raise ValueError("image_ratio: wanted at least one head with finite values, got none")
    for which, color, size, name in (
        (finite & ~marked, "#8c959f", 20, "other"),
        (finite & marked, style.REGION, 38, "selected"),
    ):
        count = int(which.sum())
        if count:
            label = f"{count} {name if selected else ''} head{'s' if count > 1 else ''}"
            axes.scatter(
                entropy[which], ratio[which], s=size, color=color, alpha=0.85, linewidths=0,
                label=label.replace("  ", " "), zorder=3 if name == "selected" else 2,
            )  # fmt: skip
    if fit and np.ptp(entropy[finite]) > 0:
        slope, offset, r, _ = linear_fit(torch.from_numpy(ratio), torch.from_numpy(entropy))
        ends = np.array([entropy[finite].min(), entropy[finite].max()])
        label = (
            f"fit: R = {slope:.2f} H {'+' if offset >= 0 else '-'} {abs(offset):.2f}, r = {r:.2f}"
        )
        axes.plot(
            ends, slope * ends + offset, color=style.INK, linewidth=1.2, linestyle="--",
            label=label,
        )  # fmt: skip
    style.plot_area(
        axes, "image attention entropy $H_{img}$ (nats)", "image attention ratio $R_{img}$"
    )
    style.legend(axes)
    return axes


def draw_layers(
    axes: style.Axes,
    rrar: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    errors: Mapping[str, Any] | None = None,
) -> style.Axes:
    """RRAR by layer, one line per prompt style (paper section 3).

    Parameters
    ----------
    axes
        Where to draw.
    rrar : mapping of name to [L]
        Relevant-region attention ratio of each layer (no unit); 1 is attention spread evenly over
        the image.
    layers
        The model's index of each of the L layers; 0 ... L - 1 without it.
    errors : mapping of name to [L], optional
        Standard errors, drawn as a band.

    Returns
    -------
    Axes
        ``axes``.

    Raises
    ------
    ValueError
        There is nothing to draw, or a line or its errors do not have L values.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> axes = draw_layers(Figure().subplots(), {"direct": [1.2, 2.5], "stepwise": [1.1, 1.4]})
    >>> len(axes.lines)  # two styles, and the line of even attention
    3
    """
    lines = {name: as_array(values).astype(float) for name, values in rrar.items()}
    if not lines:
        raise ValueError("rrar: wanted at least one prompt style, got none")
    length = len(next(iter(lines.values())))
    order = range(length) if layers is None else layers
    given = {} if errors is None else errors
    bands = {name: as_array(given[name]).astype(float) for name in lines if name in given}
    for argument, arrays in (("rrar", lines), ("errors", bands)):
        for name, values in arrays.items():
            if values.shape != (len(order),):
                wanted = f"[{len(order)}] for {name!r}"
                raise ValueError(f"{argument}: wanted {wanted}, got {[*values.shape]}")
    for index, (name, values) in enumerate(lines.items()):
        color = style.LINES[index % len(style.LINES)]
        axes.plot(order, values, color=color, linewidth=1.8, marker="o", markersize=4, label=name)
        if name in bands:
            low, high = values - bands[name], values + bands[name]
            axes.fill_between(order, low, high, color=color, alpha=0.15, linewidth=0)
    style.plot_area(axes, "layer", "RRAR", whole_x=True)
    style.even_line(axes, 1.0)
    axes.set_ylim(bottom=0)
    style.legend(axes)
    return axes
