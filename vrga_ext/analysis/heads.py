"""Per-head numbers of a capture: RRAR, the fit of R_img on H_img, drift over the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vrga_ext import selection
from vrga_ext.captures import Capture
from vrga_ext.config import VRGAConfig
from vrga_ext.region import HeadIndex


def rrar(capture: Capture, tokens: Tensor, *, reweighted: bool = True) -> Tensor:
    r"""Relevant-region attention ratio ``RRAR = mean_B(a) / mean_V(a)`` (paper section 3).

    Above 1 a head looks at the region B more than at the image's average token. The paper's
    per-layer figure is the mean over heads: ``rrar(...).nanmean(2)``.

    Parameters
    ----------
    capture
        Made with ``rows=True``.
    tokens : bool [S, n]
        B for each sample: :func:`relevant_tokens`.
    reweighted
        Of attention as the heads used it, or (False) as it was before.

    Returns
    -------
    float32 [S, L, H, R]
        NaN where a head does not see the image, or the sample has no such row or no region.

    Raises
    ------
    ValueError
        The capture holds statistics only, or ``tokens`` is not of its image tokens.

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
    if tokens.shape != capture.image_positions.shape:
        raise ValueError(
            f"tokens: wanted {[*capture.image_positions.shape]}, got {[*tokens.shape]}"
        )
    return region_ratio(
        capture.image_rows(reweighted=reweighted), tokens, capture.image_positions >= 0
    )


def region_ratio(image_attention: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
    """RRAR from attention [S, ..., n], the region and the image tokens, both bool [S, n].

    Examples
    --------
    >>> attention = torch.tensor([[0.1, 0.3, 0.0]])
    >>> tokens = torch.tensor([[False, True, False]])
    >>> region_ratio(attention, tokens, torch.tensor([[True, True, False]]))
    tensor([1.5000])
    """

    def mean(of: Tensor) -> Tensor:
        weights = of.to(image_attention.dtype)
        weights = weights / weights.sum(-1, keepdim=True)  # NaN where there is none
        between = (1,) * (image_attention.dim() - 2)
        weights = weights.view(weights.shape[0], *between, weights.shape[1])
        return (image_attention * weights).sum(-1)

    return mean(tokens & image) / mean(image)


class LinearFit(NamedTuple):
    """Least-squares fit ``R_img = slope * H_img + intercept`` over heads."""

    slope: float  # per nat
    intercept: float
    pearson_r: float
    heads: int  # that took part


def linear_fit(image_ratio: Tensor, image_entropy: Tensor) -> LinearFit:
    """Fit of R_img on H_img (paper section 3: Pearson r > 0.9 over the heads of a model).

    Parameters
    ----------
    image_ratio, image_entropy
        Of one shape; entries that are not finite in both are left out.

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
    x, y = entropy - entropy.mean(), ratio - ratio.mean()
    spread = float((x * x).sum())
    if len(x) < 2 or not spread > 0:
        raise ValueError(
            f"image_entropy: wanted at least two different finite values, got {len(x)} heads"
        )
    slope = float((x * y).sum()) / spread
    varied = spread * float((y * y).sum())
    r = float((x * y).sum()) / varied**0.5 if varied > 0 else 0.0
    return LinearFit(slope, float(ratio.mean()) - slope * float(entropy.mean()), r, len(x))


def focused_heads(
    capture: Capture, config: VRGAConfig | None = None, *, row: int = 0
) -> tuple[tuple[HeadIndex, ...], ...]:
    """Visual heads of every sample by the entropy-focus criterion (paper section 4).

    Parameters
    ----------
    config
        ``efr_percentile`` and ``ratio_percentile`` are the thresholds; its defaults without it.
    row
        Which of the capture's R rows; the first one is the question's, unless others were asked
        for.

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
    config = config or VRGAConfig()
    found = []
    for sample in range(capture.image_ratio.shape[0]):
        ratio = capture.image_ratio[sample, :, :, row].double()
        entropy = capture.image_entropy[sample, :, :, row].double()
        heads = selection.visual_heads(selection.RowStatistics.of(ratio, entropy), config)
        found.append(tuple((capture.layers[i], h) for i, h in heads.nonzero().tolist()))
    return tuple(found)


class Drift(NamedTuple):
    """How attention on the image changes over the generated tokens; means over heads, [S, T]."""

    image_ratio: Tensor
    image_entropy: Tensor  # nats
    rrar: Tensor | None  # if a region was given


def drift(
    capture: Capture, tokens: Tensor | None = None, heads: Sequence[HeadIndex] | None = None
) -> Drift:
    """R_img, H_img and RRAR at each generated token (paper section 3).

    Parameters
    ----------
    tokens : bool [S, n], optional
        A region, for RRAR; the capture then has to hold rows.
    heads
        (layer, head) pairs to average over, the layer as the model counts it; all without it.

    Raises
    ------
    ValueError
        No head, or one that the capture does not have, or as :func:`rrar`.

    Notes
    -----
    Samples of a batch are read on after their end, until the last one is complete: leave out what
    follows a sample's end token. RRAR is that of the reweighted attention, which a boost of the
    region raises by itself.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     answer = generate(model, prepare(processor, held_out(1, seed=0), steps=0), steps=0)
    >>> drift(recording.last).image_ratio.shape == (1, answer.shape[1] - 1)
    True
    """
    part = capture.generated
    chosen = torch.ones(part.image_ratio.shape[1:3], dtype=torch.bool, device="cpu")
    if heads is not None:
        chosen = head_mask(heads, capture.layers, chosen.shape[1])
        if not chosen.any():
            raise ValueError("heads: wanted at least one (layer, head), got none")

    def mean(values: Tensor) -> Tensor:  # [S, L, H, T] -> [S, T]
        return values[:, chosen].nanmean(1)

    aimed = None if tokens is None else mean(rrar(part, tokens))
    return Drift(mean(part.image_ratio), mean(part.image_entropy), aimed)


def head_mask(heads: Sequence[HeadIndex], layers: Sequence[int], per_layer: int) -> Tensor:
    """(layer, head) pairs as bool [L, H].

    Raises
    ------
    ValueError
        A head that is not there.

    Examples
    --------
    >>> head_mask([(3, 1)], layers=(0, 3), per_layer=2)
    tensor([[False, False],
            [False,  True]])
    """
    mask = torch.zeros(len(layers), per_layer, dtype=torch.bool, device="cpu")
    for layer, head in heads:
        if layer not in layers or not 0 <= head < per_layer:
            raise ValueError(
                f"heads: wanted (layer, head) of layers {[*layers]} with {per_layer} heads each, "
                f"got {(layer, head)}"
            )
        mask[list(layers).index(layer), head] = True
    return mask
