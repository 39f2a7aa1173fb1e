"""Which heads matter: hide the image from some of them while the answer is written (section 3).

The paper masks k heads of every layer (5 of 16, 10 of 32). Hidden from the most focused heads that
look at the image, accuracy collapses; from random ones, or from those that look least, it hardly
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vrga_ext.analysis.arguments import as_rows, check_row
from vrga_ext.analysis.heads import head_mask
from vrga_ext.analysis.paired import Paired, compare
from vrga_ext.captures import Capture
from vrga_ext.config import VRGAConfig
from vrga_ext.region import HeadIndex, Region
from vrga_ext.selection import RowStatistics

Policy = Literal["efr", "random", "lowest_ratio"]
Hook = Callable[[int, Region], Region]


def choose_heads(
    captures: Capture | Sequence[Capture],
    policy: Policy,
    per_layer: int,
    *,
    row: int = 0,
    seed: int = 0,
) -> tuple[HeadIndex, ...]:
    """k heads of every layer (paper section 3).

    Parameters
    ----------
    captures
        One or more of one model; R_img and H_img are averaged over their samples.
    policy
        ``"efr"``: of the heads whose R_img is above the layer's median, the k of lowest EFR (all of
        them, if they are fewer). ``"random"``: any k. ``"lowest_ratio"``: the k of lowest R_img.
    per_layer
        k, at most half of a layer's heads. Heads without statistics are never chosen.
    row
        Which of the R rows; the first one is the question's, unless others were asked for.
    seed
        Of the random policy.

    Returns
    -------
    tuple of (layer, head)
        The layer as the model counts it.

    Raises
    ------
    ValueError
        No such policy or row, or ``per_layer`` is out of range; no capture.

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
    ratio, entropy, layers = mean_statistics(captures, row)
    efr = RowStatistics.of(ratio, entropy).efr
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
    _check_choice(policy, per_layer, ratio.shape[1])
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


def _check_choice(policy: str, per_layer: int, heads: int) -> None:
    """A policy, and a number of heads that it can choose of a layer's."""
    if policy not in get_args(Policy):
        raise ValueError(f"policy: wanted one of {[*get_args(Policy)]}, got {policy!r}")
    most = max(heads // 2, 1)
    if per_layer not in range(1, most + 1):
        raise ValueError(
            f"per_layer: wanted 1 to {most} of a layer's {heads} heads, got {per_layer!r}"
        )


def mean_statistics(
    captures: Capture | Sequence[Capture], row: int = 0
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """R_img and H_img [L, H] in fp64, averaged over all samples that have them, and the layers.

    Raises
    ------
    ValueError
        No capture, captures of different layers, or no such row.
    """
    several = [captures] if isinstance(captures, Capture) else list(captures)
    layers = {capture.layers for capture in several}
    if len(layers) != 1:
        raise ValueError(f"captures: wanted some of one model, got layers {sorted(layers)}")
    check_row(row, min(capture.image_ratio.shape[3] for capture in several))

    def mean(name: str) -> Tensor:
        return torch.cat([getattr(c, name)[..., row] for c in several]).double().nanmean(0)

    return mean("image_ratio"), mean("image_entropy"), layers.pop()


def blinded(choose: Hook | None = None) -> Hook:
    """A ``region_hook`` for ``mode="mask"``: the heads, those of ``choose``, see no image.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with vrga_ext.enable(model, processor=processor, mode="mask") as handle:
    ...     handle.region_hook = blinded()
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> len(handle.regions[0].boosted)
    0
    """

    def hook(row: int, region: Region) -> Region:
        chosen = choose(row, region) if choose is not None else region
        empty = region.image_positions[:0]
        return replace(chosen, focus=empty, boosted=empty)

    return hook


@contextmanager
def mask_heads(model: Any, heads: Sequence[HeadIndex], *, processor: Any = None) -> Iterator[None]:
    """Hide the image from some heads at every generated token, for as long as the block lasts.

    Their attention on image tokens is 0 and the rest renormalised over the other keys, by the
    operation that boosts (``mode="mask"`` with no token kept); the prompt is read as always.

    Parameters
    ----------
    model
        A multimodal model of transformers, VRGA not enabled.
    heads
        (layer, head), the layer as the model counts it: :func:`choose_heads`.
    processor
        As in :func:`vrga_ext.enable`; without it a warning says which question row was read, which
        makes no difference here.

    Raises
    ------
    ValueError
        No head, VRGA is enabled already, or, when a prompt is read, a head that the model does not
        have.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with mask_heads(model, [(2, 0), (2, 1)], processor=processor):
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    """
    from vrga_ext.integrations.transformers.api import enable

    pairs = as_rows("heads", heads, "(layer, head)", whole=True)
    wanted = tuple(dict.fromkeys((layer, head) for layer, head in pairs))
    if not wanted:
        raise ValueError("heads: wanted at least one (layer, head), got none")

    def chosen(row: int, region: Region) -> Region:
        head_mask(wanted, region.layers, region.image_ratio.shape[1])
        return replace(region, visual_heads=wanted)

    config = VRGAConfig(mode="mask", gate="static")
    with enable(model, config, processor=processor) as handle:
        handle.region_hook = blinded(chosen)
        yield


@dataclass(frozen=True)
class Ablation:
    """Right answers with all heads, and with each policy's heads masked."""

    right: np.ndarray  # bool [questions], nothing masked
    heads: dict[str, tuple[HeadIndex, ...]]  # policy -> the heads masked
    masked_right: dict[str, np.ndarray]  # policy -> bool [questions]

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


def ablate(
    model: Any,
    answer: Callable[[], Sequence[bool] | np.ndarray],
    per_layer: int,
    *,
    policies: Sequence[Policy] = ("efr", "random", "lowest_ratio"),
    seed: int = 0,
    processor: Any = None,
) -> Ablation:
    """The paper's head-masking study in one call (section 3).

    Parameters
    ----------
    model
        VRGA not enabled.
    answer
        Lets the model answer every question with ``generate`` and tells which answers are right.
        It is called once with nothing masked, which is when the heads' statistics are captured at
        the question's last token, and once for every policy.
    per_layer, seed
        As in :func:`choose_heads`.
    processor
        As in :func:`vrga_ext.enable`: tells where the questions end.

    Raises
    ------
    ValueError
        As :func:`choose_heads` and :func:`mask_heads`; a policy or ``per_layer`` before anything is
        asked.

    Examples
    --------
    >>> from vrga_ext.demo.answers import answer_all, held_out, load_demo
    >>> model, processor = load_demo()
    >>> samples = held_out(12, seed=3)
    >>> def answer():
    ...     given = answer_all(model, processor, samples, steps=4)
    ...     return [a.is_right(s) for a, s in zip(given, samples)]
    >>> found = ablate(model, answer, 4, policies=("efr", "random"), processor=processor)
    >>> found.masked_accuracy("efr") < found.masked_accuracy("random") == found.accuracy
    True
    """
    from vrga_ext.integrations.transformers.api import unwrapped
    from vrga_ext.integrations.transformers.observe.recording import capture

    with capture(model, processor=processor) as recording:
        count = unwrapped(model).config.get_text_config(decoder=True).num_attention_heads
        for policy in policies:
            _check_choice(policy, per_layer, count)
        right = np.asarray(answer(), dtype=bool)
    heads: dict[str, tuple[HeadIndex, ...]] = {}
    masked: dict[str, np.ndarray] = {}
    for policy in policies:
        heads[policy] = choose_heads(recording.captures, policy, per_layer, seed=seed)
        with mask_heads(model, heads[policy], processor=processor):
            masked[policy] = np.asarray(answer(), dtype=bool)
    return Ablation(right, heads, masked)
