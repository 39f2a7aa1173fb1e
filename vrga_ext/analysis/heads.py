"""Per-head numbers of a capture: RRAR, the fit of R_img on H_img, drift over the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrga_ext import selection
from vrga_ext._arguments import as_array, as_tuples, check_query
from vrga_ext.captures import Capture
from vrga_ext.config import VRGAConfig
from vrga_ext.region import HeadIndex


def rrar(
    capture: Capture,
    tokens: Any,
    *,
    reweighted: bool = True,
    level: int | None = None,
    levels: Any = None,
) -> Tensor:
    r"""Relevant-region attention ratio ``RRAR = mean_B(a) / mean_V(a)`` (paper section 3).

    Above 1 a head looks at the region B more than at the image's average token. The paper's
    per-layer figure is the mean over heads: ``rrar(...).nanmean(2)``. Both means are over the
    tokens that the query sees; a query of the prompt within an image may see only the first ones.

    Parameters
    ----------
    capture
        Made with ``rows=True``.
    tokens : bool [S, n]
        B for each sample, a tensor or an array: :func:`relevant_tokens`.
    reweighted
        True: of the attention as the heads used it. False: before reweighting.
    level, levels
        Count the tokens of one level alone, in B and in V: 0 for the whole picture, 1 for tiles,
        which show the same once more. ``levels`` is int [S, n], from :func:`token_levels`.

    Returns
    -------
    float32 [S, L, H, R]
        NaN where a head does not see the image, the sample has no such query, or the query sees
        nothing of the region.

    Raises
    ------
    ValueError
        The capture holds statistics only, ``tokens`` is not bool [S, n], or ``level`` and
        ``levels`` do not go together.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with vrga_ext.capture(model, processor=processor, rows=True) as recording:
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> region = torch.arange(36)[None] == samples[0].cell  # where the object asked for stands
    >>> rrar(recording.last, region).shape
    torch.Size([1, 4, 8, 4])
    """
    marked, shape = as_array(tokens), capture.image_positions.shape
    if marked.dtype != bool or marked.shape != shape:
        raise ValueError(f"tokens: wanted bool {[*shape]}, got {marked.dtype} {[*marked.shape]}")
    region = torch.from_numpy(marked.copy())[:, None, None, None]  # [S, 1, 1, 1, n]
    # A query sees the image tokens up to its own, or to the end of its own image: the first ones.
    order = torch.arange(shape[1], device="cpu")
    seen = (order < capture.image_keys[..., None])[:, None, None]  # [S, 1, 1, R, n]
    if level is not None or levels is not None:
        counted = _tokens_of_level(level, levels, shape)[:, None, None, None]
        region, seen = region & counted, seen & counted
    return region_ratio(capture.image_rows(reweighted=reweighted), region, seen)


def _tokens_of_level(level: int | None, levels: Any, shape: Sequence[int]) -> Tensor:
    """Bool [S, n]."""
    if level not in (0, 1):
        raise ValueError(f"level: wanted 0 or 1 with levels, got {level!r}")
    given = as_array(levels)
    if given.dtype.kind not in "iu" or given.shape != tuple(shape):
        raise ValueError(f"levels: wanted int {[*shape]}, got {given.dtype} {[*given.shape]}")
    return torch.from_numpy(given == level)


def region_ratio(image_attention: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
    """RRAR from attention, region and image tokens.

    Parameters
    ----------
    image_attention : [..., n]
        Attention on each image token.
    tokens, image : bool, broadcastable to [..., n]
        Tokens of the region, and of the image.

    Returns
    -------
    [...]
        NaN where the region or the image has no token.

    Examples
    --------
    >>> attention = torch.tensor([[0.1, 0.3, 0.0]])
    >>> tokens = torch.tensor([[False, True, False]])
    >>> region_ratio(attention, tokens, torch.tensor([[True, True, False]]))
    tensor([1.5000])
    """

    def mean(marked: Tensor) -> Tensor:
        weights = marked.to(image_attention.dtype)
        return (image_attention * weights).sum(-1) / weights.sum(-1)  # NaN where there is none

    return mean(tokens & image) / mean(image)


class LinearFit(NamedTuple):
    """Least-squares fit ``R_img = slope * H_img + intercept`` over heads.

    Attributes
    ----------
    slope : float
        k (1 / nat).
    intercept : float
        b (no unit).
    pearson_r : float
        Pearson's correlation of R_img and H_img; NaN where all R_img are equal.
    heads : int
        Number of heads with finite statistics, over which the fit is taken.

    Examples
    --------
    >>> fit = linear_fit(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 1.0, 1.5]))
    >>> fit.slope, fit.heads
    (3.0, 3)
    """

    slope: float
    intercept: float
    pearson_r: float
    heads: int


def linear_fit(image_ratio: Tensor, image_entropy: Tensor) -> LinearFit:
    """Fit of R_img on H_img (paper section 3: Pearson r > 0.9 over the heads of a model).

    Parameters
    ----------
    image_ratio, image_entropy
        R_img (no unit) and H_img (nats) of each head, in one shape. An entry counts if both are
        finite.

    Returns
    -------
    LinearFit

    Raises
    ------
    ValueError
        The shapes differ, or fewer than two finite entries with different entropies are left.

    Examples
    --------
    >>> linear_fit(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 1.5]))
    LinearFit(slope=2.0, intercept=0.0, pearson_r=1.0, heads=3)
    """
    if image_ratio.shape != image_entropy.shape:
        raise ValueError(
            f"image_entropy: wanted {[*image_ratio.shape]}, got {[*image_entropy.shape]}"
        )
    finite = torch.isfinite(image_ratio) & torch.isfinite(image_entropy)
    ratio, entropy = image_ratio[finite].double(), image_entropy[finite].double()
    if not len(entropy) or entropy.max() == entropy.min():
        raise ValueError(
            f"image_entropy: wanted at least two different finite values, got {len(entropy)} heads"
        )
    x, y = entropy - entropy.mean(), ratio - ratio.mean()
    spread = float((x * x).sum())
    slope = float((x * y).sum()) / spread
    varied = spread * float((y * y).sum())
    r = float((x * y).sum()) / varied**0.5 if ratio.max() > ratio.min() else math.nan
    return LinearFit(slope, float(ratio.mean()) - slope * float(entropy.mean()), r, len(x))


def focused_heads(
    capture: Capture, config: VRGAConfig | None = None, *, query: int = 0
) -> tuple[tuple[HeadIndex, ...], ...]:
    """Visual heads of every sample by the entropy-focus criterion (paper section 4).

    Parameters
    ----------
    capture
        Of S samples.
    config
        Its ``efr_percentile`` and ``ratio_percentile`` are the thresholds; the defaults without it.
    query
        Index of one of the capture's R queries; the first is the question's, unless
        ``prompt_rows`` asked for others.

    Returns
    -------
    tuple of S tuples of (layer, head)
        The layer as the model counts it.

    Raises
    ------
    ValueError
        There is no such query.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> wide = vrga_ext.VRGAConfig(efr_percentile=30, ratio_percentile=50)
    >>> len(focused_heads(recording.last)[0]) < len(focused_heads(recording.last, wide)[0])
    True
    """
    check_query(query, capture.image_ratio.shape[3])
    config = config or VRGAConfig()
    found = []
    for sample in range(capture.image_ratio.shape[0]):
        ratio = capture.image_ratio[sample, :, :, query].double()
        entropy = capture.image_entropy[sample, :, :, query].double()
        heads = selection.visual_heads(selection.RowStatistics.from_ratio(ratio, entropy), config)
        found.append(tuple((capture.layers[i], h) for i, h in heads.nonzero().tolist()))
    return tuple(found)


class Drift(NamedTuple):
    """How attention on the image changes over the generated tokens, means over heads.

    Entry i belongs to the i-th token of the answer, while the model reads it and writes the next
    one. The prompt's tokens have no entry, and neither has the answer's last token, which the
    model never reads.

    Attributes
    ----------
    image_ratio : float32 [S, T]
        R_img, mean attention on image tokens over mean attention (no unit).
    image_entropy : float32 [S, T]
        H_img, entropy of the attention inside the image (nats).
    rrar : float32 [S, T], optional
        Attention on the region's tokens over that on the image's average token (no unit); None
        without a region.
    positions : int64 [S, T]
        Position of each token in the KV cache; -1 where a sample has fewer tokens.
    token_ids : int64 [S, T]
        That token; -1 where the model was not given ``input_ids``.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     answer = generate(model, prepare(processor, held_out(1, seed=0), steps=0), steps=0)
    >>> found = drift(recording.last)
    >>> found.positions[0] - found.positions[0, 0], found.rrar
    (tensor([0, 1, 2, 3]), None)
    """

    image_ratio: Tensor
    image_entropy: Tensor
    rrar: Tensor | None
    positions: Tensor
    token_ids: Tensor


def drift(capture: Capture, tokens: Any = None, heads: Sequence[HeadIndex] | None = None) -> Drift:
    """R_img, H_img and RRAR at each generated token (paper section 3).

    Index 0 is the answer's first token; the capture's own queries start with the question's.

    Parameters
    ----------
    capture
        Of S samples; made with ``rows=True`` if ``tokens`` is given.
    tokens : bool [S, n], optional
        A region, for RRAR.
    heads
        (layer, head) pairs to average over, the layer as the model counts it; all without it.

    Returns
    -------
    Drift

    Raises
    ------
    ValueError
        ``heads`` is empty or has one that the capture does not have; or as :func:`rrar`.

    Notes
    -----
    ``generate`` reads on behind a sample's end token until the last sample of the batch ends; leave
    out the values there. RRAR is that of the reweighted attention, which a boost of the region
    raises by itself.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     answer = generate(model, prepare(processor, held_out(1, seed=0), steps=0), steps=0)
    >>> found = drift(recording.last)
    >>> found.image_ratio.shape == (1, answer.shape[1] - 1)
    True
    >>> found.token_ids.tolist() == answer[:, :-1].tolist()
    True
    """
    part = capture.generated
    if heads is not None:
        chosen = head_mask(heads, capture.layers, part.image_ratio.shape[2])
        if not chosen.any():
            raise ValueError("heads: wanted at least one (layer, head), got none")
        part = select_heads(part, chosen)

    def mean(values: Tensor) -> Tensor:  # [S, L, H, T] -> [S, T]
        return values.flatten(1, 2).nanmean(1)

    ratio = None if tokens is None else mean(rrar(part, tokens))
    return Drift(
        mean(part.image_ratio), mean(part.image_entropy), ratio, part.positions, part.token_ids
    )


def select_heads(capture: Capture, mask: Tensor, sample: int | None = None) -> Capture:
    """A capture of some heads as a single layer, so that later steps compute these heads only.

    Parameters
    ----------
    capture
        Of S samples, L layers and H heads.
    mask : bool [L, H]
        The k heads.
    sample
        Index of one sample; all of them without it.

    Returns
    -------
    Capture
        Of k heads in one layer; its ``layers`` are empty.
    """
    samples = slice(sample, None if sample is None else sample + 1)
    per_sample = ("positions", "token_ids", "attended", "image_keys", "image_positions", "boosted")
    per_head = ("image_ratio", "image_entropy", "joint_entropy", "gate")
    tensors: dict[str, Any] = {name: getattr(capture, name)[samples] for name in per_sample}
    for name in per_head:
        tensors[name] = getattr(capture, name)[samples][:, mask][:, None]
    if capture.rows is not None:
        assert capture.columns is not None
        tensors["rows"] = capture.rows[samples][:, mask][:, None]
        tensors["columns"] = capture.columns[samples]
    every = range(len(capture.positions))[samples]
    return replace(
        capture,
        layers=(),
        copies=1,
        images=capture.images[samples],
        regions=tuple(capture.region(each) for each in every),
        **tensors,
    )


def head_mask(heads: Sequence[HeadIndex], layers: Sequence[int], per_layer: int) -> Tensor:
    """(layer, head) pairs as a mask.

    Parameters
    ----------
    heads
        Pairs; the layer as the model counts it.
    layers
        The model's index of each of the L layers.
    per_layer
        H, heads of each layer.

    Returns
    -------
    bool [L, H]

    Raises
    ------
    ValueError
        There is no such head, or an entry is not a pair of integers.

    Examples
    --------
    >>> head_mask([(3, 1)], layers=(0, 3), per_layer=2)
    tensor([[False, False],
            [False,  True]])
    """
    mask = torch.zeros(len(layers), per_layer, dtype=torch.bool, device="cpu")
    for layer, head in as_tuples("heads", heads, "(layer, head)", whole=True):
        if layer not in layers or not 0 <= head < per_layer:
            raise ValueError(
                f"heads: wanted (layer, head) of layers {[*layers]} with {per_layer} heads each, "
                f"got {(layer, head)}"
            )
        mask[list(layers).index(layer), head] = True
    return mask
