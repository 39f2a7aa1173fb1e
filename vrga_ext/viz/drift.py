"""Drift: how attention on the image changes over an answer, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vrga_ext._arguments import as_array
from vrga_ext.viz import style
from vrga_ext.viz.texts import visible

_INCHES_PER_LABEL = 0.11  # of the tokens' texts, which stand upright at 7 points
_LONGEST = 14  # characters of a token's text


def draw_drift(axes: style.Axes, values: Mapping[str, Any], tokens: Sequence[str]) -> style.Axes:
    """A strip for each quantity with one cell per generated token, above the tokens' texts.

    Parameters
    ----------
    axes
        Where to draw; wide and low.
    values : mapping of name to [T]
        RRAR, R_img or H_img for example, at least 0; NaN where a token has no value. Each strip has
        its own scale, from 0 to its largest value, which stands at its right end.
    tokens
        Texts of the T tokens that the model read: with :func:`vrga_ext.analysis.drift` those of its
        ``token_ids``, without the answer's last token. If the axes are too narrow for all of them,
        every k-th one is written.

    Returns
    -------
    Axes
        ``axes``.

    Raises
    ------
    ValueError
        There is nothing to draw, or a strip does not have T values.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> axes = draw_drift(axes, {"RRAR": [4.0, 1.0], "H": [0.5, 2.0]}, ["a", "star"])
    >>> [label.get_text() for label in axes.get_xticklabels()]
    ['a', 'star']
    """
    lines = _check("values", values, tokens)
    tops = [float(np.nanmax(line, initial=0)) for line in lines.values()]
    strip = np.stack([line / (top or 1.0) for line, top in zip(lines.values(), tops, strict=True)])
    axes.imshow(
        strip, aspect="auto", cmap=style.MAP, vmin=0, vmax=1, interpolation="nearest",
        extent=(-0.5, len(tokens) - 0.5, len(lines) - 0.5, -0.5),
    )  # fmt: skip
    for y in range(1, len(lines)):
        axes.axhline(y - 0.5, color="white", linewidth=3)
    axes.set_yticks(range(len(lines)), labels=list(lines), fontsize=9, color=style.INK)
    for y, top in enumerate(tops):
        axes.annotate(
            f"0 … {top:.3g}", (1, y), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=8, color=style.FAINT,
            annotation_clip=False,
        )  # fmt: skip
    for spine in axes.spines.values():
        spine.set_visible(False)
    _texts(axes, tokens)
    return axes


def compare_drift(
    axes: style.Axes,
    lines: Mapping[str, Any],
    tokens: Sequence[str],
    *,
    label: str = "RRAR",
    even: float | None = 1.0,
) -> style.Axes:
    """One quantity over an answer under several conditions: without and with VRGA, for example.

    Parameters
    ----------
    axes
        Where to draw.
    lines : mapping of name to [T]
        One value per token of each condition; NaN where a token has no value.
    tokens
        T texts, as in :func:`draw_drift`. The conditions need answers of the same wording; draw
        different answers apart, since their tokens cannot be compared by position.
    label
        Name of the quantity, with its unit.
    even
        Its value for attention spread evenly over the image, drawn as a line: 1 for RRAR; None for
        no line.

    Returns
    -------
    Axes
        ``axes``.

    Raises
    ------
    ValueError
        As :func:`draw_drift`.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> lines = {"without VRGA": [4.0, 1.0], "with VRGA": [4.0, 3.0]}
    >>> axes = compare_drift(Figure().subplots(), lines, ["a", "star"])
    >>> axes.get_ylabel()
    'RRAR'
    """
    checked = _check("lines", lines, tokens)
    for index, (name, values) in enumerate(checked.items()):
        color = style.LINES[index % len(style.LINES)]
        axes.plot(values, color=color, linewidth=1.4, marker="o", markersize=2.5, label=name)
    style.plot_area(axes, "", label)
    if even is not None:
        style.even_line(axes, even)
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.5, len(tokens) - 0.5)
    _texts(axes, tokens)
    style.legend(axes)
    return axes


def _check(
    argument: str, values: Mapping[str, Any], tokens: Sequence[str]
) -> dict[str, np.ndarray]:
    if not values:
        raise ValueError(f"{argument}: wanted values under at least one name, got none")
    if not tokens:
        raise ValueError("tokens: wanted at least one text, got none")
    lines = {name: as_array(line).astype(float) for name, line in values.items()}
    for name, line in lines.items():
        if line.shape != (len(tokens),):
            never_read = line.shape == (len(tokens) - 1,)
            raise ValueError(
                f"{name}: wanted one value for each of {len(tokens)} tokens, got {[*line.shape]}"
                + "; the model never reads an answer's last token, which has no value" * never_read
            )
    return lines


def _texts(axes: style.Axes, tokens: Sequence[str]) -> None:
    """Write the tokens under the axes, upright, as many as there is room for."""
    box, figure = axes.get_position(), axes.get_figure(root=True)
    assert figure is not None
    width = box.width * figure.get_size_inches()[0]
    every = max(1, int(np.ceil(len(tokens) * _INCHES_PER_LABEL / width)))
    places = range(0, len(tokens), every)
    texts = [visible(tokens[place]).strip(" ") for place in places]
    shown = [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in texts]
    axes.set_xticks(places, labels=[style.plain(text) for text in shown])
    axes.tick_params(axis="x", labelsize=7, labelrotation=90, length=2, colors=style.INK)
    axes.grid(False, axis="x")
