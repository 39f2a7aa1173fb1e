"""Which heads matter: hide the image from some of them while the answer is written (section 3).

The paper masks k heads of every layer (5 of 16, 10 of 32). Hidden from the most focused heads that
look at the image, accuracy collapses; from random ones, or from those that look least, it hardly
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vrga_ext._arguments import check_query
from vrga_ext.analysis.paired import Paired, compare
from vrga_ext.captures import Capture
from vrga_ext.region import HeadIndex, Region
from vrga_ext.selection import RowStatistics

Policy = Literal["efr", "random", "lowest_ratio"]
Hook = Callable[[int, Region], Region]


def choose_heads(
    captures: Capture | Sequence[Capture],
    policy: Policy,
    per_layer: int,
    *,
    query: int = 0,
    seed: int = 0,
) -> tuple[HeadIndex, ...]:
    """k heads of every layer (paper section 3).

    Parameters
    ----------
    captures
        One or more of the same model; R_img and H_img are means over their samples.
    policy
        ``"efr"``: of the heads whose R_img is above the layer's median, the k of lowest EFR (all of
        them, if they are fewer). ``"random"``: any k. ``"lowest_ratio"``: the k of lowest R_img.
    per_layer
        k, at most half of a layer's heads. Heads without statistics are never chosen.
    query
        Index of one of the R queries; the first is the question's, unless ``prompt_rows`` asked for
        others.
    seed
        Seed of the random policy.

    Returns
    -------
    tuple of (layer, head)
        The layer as the model counts it.

    Raises
    ------
    ValueError
        There is no such policy, query or capture, or ``per_layer`` is out of range.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> len(choose_heads(recording.last, "efr", per_layer=2))  # of each of 4 layers
    8
    """
    ratio, entropy, layers = mean_statistics(captures, query)
    efr = RowStatistics.from_ratio(ratio, entropy).efr
    return heads_by_policy(ratio, efr, layers, policy, per_layer, seed=seed)


def heads_by_policy(
    ratio: Tensor,
    efr: Tensor,
    layers: Sequence[int],
    policy: Policy,
    per_layer: int,
    *,
    seed: int = 0,
) -> tuple[HeadIndex, ...]:
    """:func:`choose_heads` from R_img and EFR, both [L, H].

    Examples
    --------
    >>> ratio = torch.tensor([[0.1, 2.0, 1.0, 3.0]])
    >>> efr = torch.tensor([[0.2, 0.9, 2.0, 0.4]])
    >>> heads_by_policy(ratio, efr, (5,), "efr", 1)  # heads 1 and 3 look more than the median
    ((5, 3),)
    >>> heads_by_policy(ratio, efr, (5,), "lowest_ratio", 2)
    ((5, 0), (5, 2))
    """
    check_choice(policy, per_layer, ratio.shape[1])
    if policy == "random":
        generator = torch.Generator().manual_seed(seed)
        score = torch.rand(ratio.shape, generator=generator)
    elif policy == "lowest_ratio":
        score = ratio
    else:
        looking = ratio > ratio.nanquantile(0.5, dim=1, keepdim=True)
        score = torch.where(looking, efr, torch.inf)
    score = torch.where(ratio.isfinite(), score, torch.inf)
    lowest = score.argsort(dim=1, stable=True)[:, : int(per_layer)]
    return tuple(
        (layer, head)
        for index, layer in enumerate(layers)
        for head in sorted(lowest[index].tolist())
        if torch.isfinite(score[index, head])
    )


def check_choice(policy: str, per_layer: int, heads: int) -> None:
    """Check a policy, and the number of heads that it is to choose in a layer."""
    if policy not in get_args(Policy):
        raise ValueError(f"policy: wanted one of {[*get_args(Policy)]}, got {policy!r}")
    most = max(heads // 2, 1)
    if per_layer not in range(1, most + 1):
        raise ValueError(
            f"per_layer: wanted 1 to {most} of a layer's {heads} heads, got {per_layer!r}"
        )


def mean_statistics(
    captures: Capture | Sequence[Capture], query: int = 0
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """R_img and H_img, float64 [L, H], means over all samples that have them; and the layers.

    Raises
    ------
    ValueError
        There is no capture or no such query, or the captures have different layers.
    """
    several = [captures] if isinstance(captures, Capture) else list(captures)
    layers = {capture.layers for capture in several}
    if len(layers) != 1:
        raise ValueError(f"captures: wanted some of one model, got layers {sorted(layers)}")
    check_query(query, min(capture.image_ratio.shape[3] for capture in several))

    def mean(name: str) -> Tensor:
        return torch.cat([getattr(c, name)[..., query] for c in several]).double().nanmean(0)

    return mean("image_ratio"), mean("image_entropy"), layers.pop()


def blinded(choose: Hook | None = None) -> Hook:
    """A ``region_hook`` for ``suppress=0`` that hides the image from the visual heads.

    Parameters
    ----------
    choose
        Hook that chooses other heads first.

    Returns
    -------
    callable
        ``(sample, Region) -> Region``.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with vrga_ext.enable(model, processor=processor, suppress=0.0) as handle:
    ...     handle.region_hook = blinded()
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> len(handle.regions[0].boosted)
    0
    """

    def hook(sample: int, region: Region) -> Region:
        chosen = choose(sample, region) if choose is not None else region
        empty = region.image_positions[:0]
        return replace(chosen, focus=empty, boosted=empty)

    return hook


@dataclass(frozen=True)
class Ablation:
    """Right answers with all heads, and with each policy's heads masked.

    Attributes
    ----------
    right : bool [questions]
        Whether the answer is right while no head is masked.
    heads : dict of str to tuple of (layer, head)
        The masked heads of each policy; the layer as the model counts it.
    masked_right : dict of str to bool [questions]
        Whether the answer is right while that policy's heads are masked.

    Examples
    --------
    >>> right, masked = np.array([True, True, False]), np.array([True, False, False])
    >>> found = Ablation(right, {"efr": ((0, 1),)}, {"efr": masked})
    >>> f"{found.accuracy:.2f} -> {found.masked_accuracy('efr'):.2f}"
    '0.67 -> 0.33'
    """

    right: np.ndarray
    heads: dict[str, tuple[HeadIndex, ...]]
    masked_right: dict[str, np.ndarray]

    @property
    def accuracy(self) -> float:
        """Share of right answers, nothing masked."""
        return float(self.right.mean())

    def masked_accuracy(self, policy: Policy) -> float:
        """Share of right answers with a policy's heads masked."""
        return float(self.masked_right[policy].mean())

    def against_base(self, policy: Policy) -> Paired:
        """A policy's answers against those with nothing masked."""
        return compare(self.masked_right[policy], self.right)
