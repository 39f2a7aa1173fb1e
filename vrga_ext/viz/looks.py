"""From a capture to values for drawings: mean maps of heads, and values by written token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vrga_ext._arguments import as_array
from vrga_ext.analysis import head_mask
from vrga_ext.analysis.heads import select_heads
from vrga_ext.captures import Capture
from vrga_ext.region import HeadIndex


def head_maps(
    capture: Capture,
    *,
    sample: int = 0,
    heads: Sequence[HeadIndex] | None = None,
    reweighted: bool = True,
) -> np.ndarray:
    """Mean attention of some heads on the image tokens, at every captured query.

    Parameters
    ----------
    capture
        Made with ``rows=True`` or ``rows="all"``.
    sample
        Index of one of its S samples.
    heads
        (layer, head) pairs; the sample's visual heads without it.
    reweighted
        True: the attention as the heads used it. False: before reweighting.

    Returns
    -------
    float array [R, n]
        Share of all attention on each image token; :func:`cells` makes a map of each query's.

    Raises
    ------
    ValueError
        The capture holds statistics only, there is no such sample or head, or ``heads`` is empty.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> inputs = prepare(processor, held_out(1, seed=7), steps=0)
    >>> with vrga_ext.capture(model, processor=processor, rows=True) as recording:
    ...     answer = generate(model, inputs, steps=0)
    >>> capture = recording.last
    >>> head_maps(capture).shape  # the question's last token, four generated ones; 36 image tokens
    (5, 36)
    """
    check_sample(capture, sample)
    region = capture.region(sample)
    named = region.visual_heads if heads is None else tuple(heads)
    if not named:
        raise ValueError("heads: wanted at least one (layer, head), got none")
    mask = head_mask(named, capture.layers, capture.image_ratio.shape[2])
    there = as_array(capture.image_positions[sample]) >= 0
    few = select_heads(capture, mask, sample)
    maps = few.image_rows(reweighted=reweighted)[0, 0]  # [k, R, n]
    mean: np.ndarray = as_array(maps).mean(0)[:, there]
    return mean


def per_token(
    values: Any, capture: Capture, count: int, *, sample: int = 0, blank: float = np.nan
) -> np.ndarray:
    """Values of a capture's queries, by the token that the model wrote at each of them.

    At a query the model *reads* a token and writes the next one. It writes the first token of an
    answer while it reads the prompt's last token: the first entry is ``blank`` unless
    ``prompt_rows`` captured that query.

    Parameters
    ----------
    values : [R, ...]
        One entry per query of the capture.
    capture
        The capture.
    count
        T, tokens of the answer.
    sample
        Index of one of the capture's samples.
    blank
        Value for a token without a query.

    Returns
    -------
    float array [T, ...]

    Raises
    ------
    ValueError
        There are not R values, or the answer has more tokens than were captured.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> inputs = prepare(processor, held_out(1, seed=7), steps=0)
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     answer = generate(model, inputs, steps=0)
    >>> capture = recording.last
    >>> per_token(capture.image_ratio[0, 0, 0], capture, answer.shape[1]).shape
    (5,)
    """
    check_sample(capture, sample)
    array = as_array(values).astype(float)
    positions = as_array(capture.positions[sample])
    if array.ndim == 0 or len(array) != len(positions):
        raise ValueError(f"values: wanted [{len(positions)}, ...], got {[*array.shape]}")
    first = capture.prompt_rows
    generated = int((positions[first:] >= 0).sum())
    if not 0 <= count <= generated + 1:
        raise ValueError(
            f"count: wanted 0 to {generated + 1} tokens, as many as were captured, got {count}"
        )
    sorted_ = np.full((count, *array.shape[1:]), blank, dtype=float)
    sorted_[1:] = array[first : first + count - 1]
    if count and generated:
        before = np.flatnonzero(positions[:first] == positions[first] - 1)
        if len(before):
            sorted_[0] = array[before[0]]
    return sorted_


def check_sample(capture: Capture, sample: int) -> None:
    count = len(capture.positions)
    if not 0 <= sample < count:
        raise ValueError(f"sample: wanted one of {count} samples, got {sample}")
