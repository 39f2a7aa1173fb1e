"""Which heads look at the image over many prompts: a ranking that can be kept and used again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vrga_ext import selection
from vrga_ext.analysis.heads import rrar
from vrga_ext.analysis.profile_files import read_profile, write_profile
from vrga_ext.captures import Capture
from vrga_ext.config import VRGAConfig
from vrga_ext.model_identity import ModelIdentity
from vrga_ext.region import HeadIndex
from vrga_ext.warning import VRGAWarning


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class HeadProfile:
    """How often each head was a visual head over many prompts, and how it looked at the image.

    ``vrga_ext.enable(model, heads=profile)`` boosts its first heads in every prompt. L is the
    number of full-attention layers, H that of query heads.

    Attributes
    ----------
    layers : tuple of int
        The model's own index of each of the L layers.
    prompts : int
        Prompts with an image over which the profile is taken; each sample of a batch counts.
    selected : int64 [L, H]
        Prompts in which the head was a visual head.
    mean_efr : float64 [L, H]
        Mean entropy-focus ratio over the prompts in which it is finite (nats); NaN without one.
    mean_rrar : float64 [L, H], optional
        Mean relevant-region attention ratio over the prompts that have one (no unit); NaN without
        one. None if no region was given.
    model : ModelIdentity, optional
        Model of the captures: type, numbers of layers and heads, name and revision. None where the
        captures do not tell it.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> inputs = prepare(processor, held_out(4, seed=0), steps=0)
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     answers = generate(model, inputs, steps=0)
    >>> profile = head_profile(recording.captures)
    >>> profile.prompts, profile.selected.shape, profile.model.model_type
    (4, torch.Size([4, 8]), 'qwen2_5_vl')
    >>> with vrga_ext.enable(model, processor=processor, heads=profile) as handle:
    ...     answers = generate(model, inputs, steps=0)
    >>> set(handle.regions[0].visual_heads) == set(profile.top())
    True
    """

    layers: tuple[int, ...]
    prompts: int
    selected: Tensor
    mean_efr: Tensor
    mean_rrar: Tensor | None = None
    model: ModelIdentity | None = None

    def top(self, n: int | None = None) -> tuple[HeadIndex, ...]:
        """The heads that were visual heads most often; among equals, those of lowest mean EFR.

        Parameters
        ----------
        n
            How many; None: as many as a prompt had on average, at least one.

        Returns
        -------
        tuple of (layer, head)
            Best first; the layer as the model counts it.

        Raises
        ------
        ValueError
            There are not so many heads.
        """
        every = self.selected.numel()
        if n is None:
            n = max(1, round(int(self.selected.sum()) / self.prompts))
        if n not in range(1, every + 1):
            raise ValueError(f"n: wanted 1 to {every} heads, got {n!r}")
        efr = self.mean_efr.nan_to_num(math.inf).flatten().tolist()
        counts = self.selected.flatten().tolist()
        order = sorted(range(every), key=lambda index: (-counts[index], efr[index]))
        heads = self.selected.shape[1]
        return tuple((self.layers[index // heads], index % heads) for index in order[: int(n)])

    def check_model(self, model: ModelIdentity) -> None:
        """Check that the heads are those of a model.

        Parameters
        ----------
        model
            ``ModelIdentity.from_config(model.config)``.

        Raises
        ------
        ValueError
            It has another type, or another number of layers or heads.

        Warns
        -----
        VRGAWarning
            It may have other weights: another name or revision, or the profile does not tell.
        """
        own = self.model
        if own is None:
            _warn("the head profile does not tell which model it is of")
            return
        for name in ("model_type", "num_layers", "num_heads"):
            wanted, got = getattr(model, name), getattr(own, name)
            if wanted != got:
                raise ValueError(
                    f"heads: wanted a profile of a model with {name} {wanted!r}, got one with "
                    f"{got!r}"
                )
        for name in ("name", "revision"):
            wanted, got = getattr(model, name), getattr(own, name)
            if wanted != got:
                _warn(f"the head profile is of a model with {name} {got!r}, not {wanted!r}")

    def save(self, path: str | PathLike[str]) -> None:
        """Write a JSON file; :meth:`load` reads it.

        Parameters
        ----------
        path
            The file; an existing one is replaced once the new one is whole.

        Raises
        ------
        OSError
            The file cannot be written; an existing one stays as it was.
        """
        write_profile(self, Path(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> HeadProfile:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        HeadProfile

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is not a head profile, its parts do not fit each other, or its format is newer;
            the message names what was wanted and what came.
        """
        return cls(**read_profile(Path(path)))


def head_profile(
    captures: Capture | Iterable[Capture],
    tokens: Any = None,
    *,
    config: VRGAConfig | None = None,
) -> HeadProfile:
    """Rank the heads of a model over many prompts.

    Each prompt counts with its statistics at the question's last token, whatever rows were captured
    and whether VRGA was enabled. Prompts without an image are left out.

    Parameters
    ----------
    captures
        One, or several of the same model; any iterable, so that files can be read one by one.
    tokens
        For the mean RRAR, what :func:`rrar` takes, bool [S, n], for each capture, or None for one
        without a known region. These captures need image rows at the question (``rows=True``).
    config
        Its ``efr_percentile`` and ``ratio_percentile`` choose the visual heads of each prompt; the
        defaults without it.

    Returns
    -------
    HeadProfile

    Raises
    ------
    ValueError
        There is no prompt with an image, the captures are of different models or layers, ``tokens``
        are not one per capture, or a capture with tokens has no image rows at the question.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(4, seed=0)
    >>> with vrga_ext.capture(model, processor=processor, rows=True) as recording:
    ...     answers = generate(model, prepare(processor, samples, steps=0), steps=0)
    >>> objects = torch.tensor([sample.cell for sample in samples])[:, None]
    >>> profile = head_profile(recording.last, torch.arange(36) == objects)
    >>> layer, head = profile.top(1)[0]
    >>> bool(profile.mean_rrar[layer, head] > 1)  # it looks at the object that is asked for
    True
    """
    config = config or VRGAConfig()
    layers: set[tuple[int, ...]] = set()
    models: set[ModelIdentity] = set()
    selected, efr, ratios = [], [], []
    for capture, marked in _pairs(captures, tokens):
        if capture.model is not None:
            models.add(capture.model)
        for region in capture.regions:
            if not len(region.image_positions):
                continue
            layers.add(region.layers)
            statistics = selection.RowStatistics(
                region.image_ratio, region.image_entropy, region.efr
            )
            selected.append(selection.visual_heads(statistics, config))
            efr.append(torch.where(region.efr.isfinite(), region.efr, torch.nan))
        if marked is not None:
            layers.add(capture.layers)
            ratios += _question_rrar(capture, marked)
        if len(layers) > 1 or len(models) > 1:
            got = f"layers {sorted(layers)}" if len(layers) > 1 else f"{[*models]}"
            raise ValueError(f"captures: wanted some of one model, got {got}")
    if not selected:
        raise ValueError("captures: wanted at least one prompt with an image, got none")
    return HeadProfile(
        layers=layers.pop(),
        prompts=len(selected),
        selected=torch.stack(selected).sum(0),
        mean_efr=torch.stack(efr).nanmean(0),
        mean_rrar=None if tokens is None else torch.stack(ratios).double().nanmean(0),
        model=models.pop() if models else None,
    )


def _pairs(captures: Capture | Iterable[Capture], tokens: Any) -> Iterator[tuple[Capture, Any]]:
    """Each capture with its tokens, if any."""
    if isinstance(captures, Capture):
        captures, tokens = [captures], None if tokens is None else [tokens]
    if tokens is None:
        yield from ((capture, None) for capture in captures)
        return
    missing: Any = object()
    for capture, marked in zip_longest(captures, tokens, fillvalue=missing):
        if capture is missing or marked is missing:
            raise ValueError("tokens: wanted one entry per capture, got another number")
        yield capture, marked


def _question_rrar(capture: Capture, tokens: Any) -> list[Tensor]:
    """RRAR [L, H] of every prompt's question, as the heads look by themselves."""
    of_query: dict[int, Tensor] = {}
    found = []
    for index, region in enumerate(capture.regions):
        if not len(region.image_positions):
            continue
        sample = index * capture.copies
        queries = (capture.positions[sample] == region.question_end).nonzero().flatten().tolist()
        if not queries:
            raise ValueError(
                "tokens: wanted captures of the question (prompt_rows='question'), got one without"
            )
        query = queries[0]
        if query not in of_query:
            part = capture.select(slice(query, query + 1))
            of_query[query] = rrar(part, tokens, reweighted=False)[..., 0]
        found.append(of_query[query][sample])
    return found


def _warn(message: str) -> None:
    warnings.warn(message, VRGAWarning, stacklevel=3)
