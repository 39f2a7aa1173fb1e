"""Hide the image from some heads of a model while it answers: the paper's study (section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from vrga_ext._arguments import as_tuples
from vrga_ext.analysis.ablation import Ablation, Policy, blinded, check_choice, choose_heads
from vrga_ext.analysis.heads import head_mask
from vrga_ext.config import VRGAConfig
from vrga_ext.integrations.transformers.api import enable, unwrapped
from vrga_ext.integrations.transformers.observe.recording import capture
from vrga_ext.region import HeadIndex, Region


@contextmanager
def mask_heads(model: Any, heads: Sequence[HeadIndex], *, processor: Any = None) -> Iterator[None]:
    """Hide the image from some heads at every generated token, for as long as the block lasts.

    Their attention on image tokens is 0 and the rest renormalised over the other keys, by the
    operation that boosts (``suppress=0`` with no token kept); the prompt is read as always.

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
    pairs = as_tuples("heads", heads, "(layer, head)", whole=True)
    wanted = tuple(dict.fromkeys((layer, head) for layer, head in pairs))
    if not wanted:
        raise ValueError("heads: wanted at least one (layer, head), got none")

    def chosen(row: int, region: Region) -> Region:
        head_mask(wanted, region.layers, region.image_ratio.shape[1])
        return replace(region, visual_heads=wanted)

    config = VRGAConfig(gamma=0.0, suppress=0.0, gate="static")
    with enable(model, config, processor=processor) as handle:
        handle.region_hook = blinded(chosen)
        yield


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
    with capture(model, processor=processor) as recording:
        count = unwrapped(model).config.get_text_config(decoder=True).num_attention_heads
        for policy in policies:
            check_choice(policy, per_layer, count)
        right = np.asarray(answer(), dtype=bool)
    heads: dict[str, tuple[HeadIndex, ...]] = {}
    masked: dict[str, np.ndarray] = {}
    for policy in policies:
        heads[policy] = choose_heads(recording.captures, policy, per_layer, seed=seed)
        with mask_heads(model, heads[policy], processor=processor):
            masked[policy] = np.asarray(answer(), dtype=bool)
    return Ablation(right, heads, masked)
