"""Maps over the picture: attention, and outlines of the question-relevant tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vrga_ext._arguments import as_array
from vrga_ext.geometry import TokenGeometry
from vrga_ext.region import Region
from vrga_ext.viz import style
from vrga_ext.viz.grid import Box, Picture, as_picture, boundary, cells, covered
from vrga_ext.viz.rects import as_geometries, paint, rect_boundary, token_values


def draw_map(
    axes: style.Axes,
    image: Picture,
    values: Any,
    *,
    region: Any = None,
    top: float | None = None,
    box: Box | None = None,
    geometry: TokenGeometry | None = None,
    level: int | None = None,
) -> style.Axes:
    """Draw a map over a faded picture.

    Parameters
    ----------
    axes
        Where to draw; the map itself is ``axes.images[-1]`` afterwards, for a colour bar.
    image
        The picture, PIL or uint8 [height, width(, 3)].
    values : [rows, columns]
        Finite and at least 0, one per patch: :func:`cells` makes them from one value per image
        token.
    region : bool [rows, columns], optional
        Patches to outline, T_q for example.
    top
        Value of the strongest colour; the largest of ``values`` without it. Use the same one for
        maps to compare.
    box
        The part of the picture that the patches cover, (left, upper, right, lower) in pixels, for
        processors that crop; the whole picture without it.
    geometry
        Where the picture's tokens lie, from :func:`vrga_ext.geometry.token_geometry`. ``values``
        and ``region`` are [n] then, one per token of the picture, and each token is painted over
        its rectangle: tiles over the whole picture. Padding and separators are not shown.
    level
        With ``geometry``: 0 paints tokens of the whole picture alone, 1 those of its tiles.

    Returns
    -------
    Axes
        ``axes``.

    Raises
    ------
    ValueError
        ``values`` is not [rows, columns] or [n] of finite numbers of at least 0, ``region`` has
        another shape, or ``box`` or ``geometry`` does not fit the picture.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> picture = np.full((40, 60, 3), 255, dtype=np.uint8)
    >>> values = np.array([[0.0, 0.1, 0.0], [0.0, 0.5, 0.1]])
    >>> axes = draw_map(Figure().subplots(), picture, values, region=values > 0.3)
    >>> axes.images[-1].get_array().shape
    (2, 3)
    """
    array = as_array(values).astype(float)
    picture = as_picture(image)
    if geometry is None and (array.ndim != 2 or not array.size):
        raise ValueError(f"values: wanted [rows, columns], got {[*array.shape]}")
    if geometry is not None:
        as_geometries(geometry, [picture])
        if array.shape != (len(geometry),):
            raise ValueError(f"values: wanted [{len(geometry)}], got {[*array.shape]}")
    wrong = array[~np.isfinite(array) | (array < 0)]
    if wrong.size:
        raise ValueError(f"values: wanted finite numbers >= 0, got {wrong[0]:g}")
    left, upper, right, lower = covered(picture, box)
    faded = np.asarray(picture.convert("L"))[..., None].repeat(3, -1) * 0.45 + 255 * 0.55
    _show(axes, faded.astype(np.uint8))
    highest = (float(array.max()) if top is None else top) or 1.0
    painted = array if geometry is None else paint(array, geometry, level)
    strength = np.nan_to_num(np.clip(painted / highest, 0, 1))
    axes.imshow(
        painted,
        extent=(left, right, lower, upper),
        cmap=style.MAP,
        vmin=0,
        vmax=highest,
        alpha=np.where(strength > 0.01, 0.25 + 0.6 * strength, 0.0),
        interpolation="nearest",
    )
    axes.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    if region is not None:
        _same_shape(as_array(region), array)
        _outline(axes, region, (left, upper, right, lower), geometry, level)
    return axes


def draw_picture(
    axes: style.Axes,
    image: Picture,
    *,
    region: Any = None,
    box: Box | None = None,
    geometry: TokenGeometry | None = None,
    level: int | None = None,
) -> style.Axes:
    """Draw the picture, with an outline around some of its patches.

    Parameters
    ----------
    axes, image, region, box, geometry, level
        As in :func:`draw_map`.

    Returns
    -------
    Axes
        ``axes``.

    Raises
    ------
    ValueError
        ``region``, ``box`` or ``geometry`` does not fit.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> picture = np.full((28, 56, 3), 255, dtype=np.uint8)
    >>> axes = draw_picture(Figure().subplots(), picture, region=np.array([[True, False]]))
    >>> axes.get_ylim() == (28, 0)
    True
    """
    picture = as_picture(image)
    _show(axes, np.asarray(picture))
    if geometry is not None:
        as_geometries(geometry, [picture])
    if region is not None:
        _outline(axes, region, covered(picture, box), geometry, level)
    return axes


def outline(axes: style.Axes, region: Any, box: Box, color: str = style.REGION) -> style.Axes:
    """Draw the border of a set of patches.

    Parameters
    ----------
    axes
        Where to draw.
    region : bool [rows, columns]
        The patches.
    box
        The part of the picture that the grid covers, (left, upper, right, lower) in pixels.
    color
        Of the line.

    Returns
    -------
    Axes
        ``axes``.

    Raises
    ------
    ValueError
        ``region`` is not boolean [rows, columns].

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> axes = outline(Figure().subplots(), np.array([[False, True]]), (0, 0, 56, 28))
    >>> len(axes.collections[0].get_segments())
    4
    """
    marked = as_array(region)
    if marked.ndim != 2 or marked.dtype != bool:
        raise ValueError(
            f"region: wanted bool [rows, columns], got {marked.dtype} {[*marked.shape]}"
        )
    left, upper, right, lower = box
    rows, columns = marked.shape
    size = np.array([(right - left) / columns, (lower - upper) / rows])
    _draw_lines(axes, boundary(marked) * size + [left, upper], color)
    return axes


def draw_region(
    axes: style.Axes,
    image: Picture,
    region: Region,
    *,
    index: int = 0,
    box: Box | None = None,
    geometry: TokenGeometry | Sequence[TokenGeometry] | None = None,
    level: int | None = None,
) -> style.Axes:
    """Draw the refined map over the picture, with an outline around the question-relevant tokens.

    Parameters
    ----------
    axes
        Where to draw.
    image
        The picture, PIL or uint8 [height, width(, 3)].
    region
        What VRGA selected: one of ``handle.regions``.
    index
        Index of the picture among the prompt's images.
    box, level
        As in :func:`draw_map`.
    geometry
        As in :func:`draw_map`; a list of them for a prompt with several images.

    Returns
    -------
    Axes
        ``axes``.

    Raises
    ------
    ValueError
        There is no such image, its tokens form no rectangle and there is no geometry, or
        ``geometry`` does not fit.

    Examples
    --------
    >>> import vrga_ext
    >>> from matplotlib.figure import Figure
    >>> from vrga_ext.demo.answers import DEMO_CONFIG, generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=7)
    >>> with vrga_ext.enable(model, DEMO_CONFIG, processor=processor) as handle:
    ...     answer = generate(model, prepare(processor, samples, steps=0), steps=0)
    >>> axes = draw_region(Figure().subplots(), samples[0].image, handle.regions[0])
    >>> axes.get_title()
    'Question-relevant tokens'
    """
    is_focus = torch.isin(region.image_positions, region.focus)
    given = [geometry] if isinstance(geometry, TokenGeometry) else geometry
    images = region.images if given is None else given
    if not 0 <= index < len(images):
        raise ValueError(f"index: wanted one of {len(images)} images, got {index}")
    if given is None:
        own = None
        focus, values = (cells(v, region.images[index]) for v in (is_focus, region.refined_map))
    else:
        own = given[index]
        focus, values = (
            token_values(v, region.images, given)[index] for v in (is_focus, region.refined_map)
        )
    draw_map(axes, image, values, region=focus, box=box, geometry=own, level=level)
    count = f"{int(focus.sum())} of {focus.size} image tokens"
    style.heading(
        axes, "Question-relevant tokens", f"{count}, from {len(region.visual_heads)} visual heads"
    )
    return axes


def compare_maps(
    pair: tuple[style.Axes, style.Axes],
    image: Picture,
    before: Any,
    after: Any,
    *,
    region: Any = None,
    titles: tuple[str, str] = ("without VRGA", "with VRGA"),
    box: Box | None = None,
    geometry: TokenGeometry | None = None,
    level: int | None = None,
) -> tuple[style.Axes, style.Axes]:
    """Two maps of one picture side by side, in the same colours: before VRGA and after.

    Parameters
    ----------
    pair
        Two axes.
    image, region, box, geometry, level
        As in :func:`draw_map`.
    before, after : [rows, columns], or [n] with ``geometry``
        Attention on each image token. Its sum, and its sum over ``region``, stand below the title.
    titles
        Of the two maps.

    Returns
    -------
    tuple of Axes
        ``pair``.

    Raises
    ------
    ValueError
        As :func:`draw_map`; or ``pair`` or ``titles`` do not have two entries.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> before, after = np.array([[0.2, 0.1]]), np.array([[0.1, 0.4]])
    >>> picture = np.zeros((28, 56, 3), dtype=np.uint8)
    >>> pair = compare_maps(Figure().subplots(1, 2), picture, before, after, region=after > 0.2)
    >>> pair[0].images[-1].norm.vmax == pair[1].images[-1].norm.vmax == 0.4
    True
    """
    for name, two in (("pair", pair), ("titles", titles)):
        if len(two) != 2:
            raise ValueError(f"{name}: wanted two, got {len(two)}")
    maps = as_array(before).astype(float), as_array(after).astype(float)
    top = max(float(array.max(initial=0)) for array in maps)
    for axes, array, title in zip(pair, maps, titles, strict=True):
        draw_map(
            axes, image, array, region=region, top=top, box=box, geometry=geometry, level=level
        )
        shares = f"{array.sum():.0%} on the picture"
        if region is not None:
            shares += f", {array[as_array(region)].sum():.0%} on the region"
        style.heading(axes, title, shares)
    return pair


def _outline(
    axes: style.Axes, region: Any, box: Box, geometry: TokenGeometry | None, level: int | None
) -> None:
    if geometry is None:
        outline(axes, region, box)
        return
    marked = as_array(region)
    if marked.shape != (len(geometry),) or marked.dtype != bool:
        raise ValueError(
            f"region: wanted bool [{len(geometry)}], got {marked.dtype} {[*marked.shape]}"
        )
    shown = geometry.level >= 0 if level is None else geometry.level == level
    _draw_lines(axes, rect_boundary(geometry.rects[marked & shown]), style.REGION)


def _draw_lines(axes: style.Axes, lines: np.ndarray, color: str) -> None:
    axes.add_collection(
        style.LineCollection(
            list(lines), colors=color, linewidths=2.2, capstyle="projecting", clip_on=False,
            zorder=5,
        ),
        autolim=False,
    )  # fmt: skip


def _show(axes: style.Axes, pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased")
    style.frame(axes)


def _same_shape(region: np.ndarray, values: np.ndarray) -> None:
    if region.shape != values.shape:
        raise ValueError(f"region: wanted {[*values.shape]}, got {[*region.shape]}")
