"""What the model computes in: the dynamic gate, eager attention, bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.adapter.explicit import explicit_greedy
from tests.adapter.families import LOOSE, greedy, logits
from tests.adapter.modes.base import (
    GAMMA,
    MIXED,
    NEW,
    Follow,
    Subject,
    assert_boosted,
    assert_close,
    assert_same_regions,
    mode,
    stock,
    without_vrga,
)
from vrga_ext import VRGAConfig


@mode("eager attention", '`attn_implementation="eager"`', column="eager, bfloat16")
def eager_attention(subject: Subject) -> None:
    loop, model = subject.run(MIXED, None), subject.twin()
    model.set_attn_implementation("eager")
    plain = stock(loop.logits, lambda: subject.run(MIXED, None, model=model).logits)
    assert torch.equal(subject.run(MIXED, 0.0, model=model).logits, plain)
    ours, boosted = subject.run(MIXED, GAMMA, model=model), subject.run(MIXED, GAMMA)
    assert torch.equal(ours.tokens, boosted.tokens)
    assert_close(ours.logits, boosted.logits, 1e-4)
    assert_same_regions(ours.regions, boosted.regions)


@mode("dynamic gate", "heads chosen anew in every layer and step", column="greedy")
def dynamic_gate(subject: Subject) -> None:
    """Against stored weights that are reweighted head by head, as the formula is written."""
    config = {"gate": "dynamic", "min_ratio": 1.0}
    plain = subject.run(MIXED, None)
    assert torch.equal(subject.run(MIXED, 0.0, config=config).logits, plain.logits)
    ours = subject.run(MIXED, GAMMA, config=config)
    explicit = explicit_greedy(
        subject.model,
        subject.prompt(MIXED),
        ours.tokens,
        list(ours.regions),
        VRGAConfig(**LOOSE, **config),
    )
    assert_close(ours.logits, logits(explicit), 1e-4)
    assert_boosted(ours.logits, plain.logits)


@mode("bfloat16", "weights and pictures in bfloat16", column="eager, bfloat16")
def bfloat16(subject: Subject) -> None:
    """Along the same tokens, VRGA errs no more than twice as much as the model without it."""
    inputs = subject.prompt(MIXED)
    inputs = {name: t.bfloat16() if t.is_floating_point() else t for name, t in inputs.items()}
    width = inputs["input_ids"].shape[1]
    model = subject.twin().bfloat16()
    follow = {"logits_processor": [Follow(subject.run(MIXED, None).tokens, width)]}
    single = {gamma: subject.run(MIXED, gamma, **follow) for gamma in (None, GAMMA)}

    def run(gamma: float | None) -> Tensor:
        with subject.enabled(gamma, width - 1, model) as handle:
            if handle is not None:  # the same heads and tokens
                handle.region_hook = lambda row, region: single[GAMMA].regions[row]
            return logits(greedy(model, inputs, NEW, **follow))

    with without_vrga():
        plain = run(None)
    ours = run(GAMMA)
    assert torch.equal(run(0.0), plain)
    assert_boosted(ours, plain)
    errors, stock_errors = (
        (half[1:].float() - single[gamma].logits[1:]).norm(dim=(0, 2))
        for half, gamma in ((ours, GAMMA), (plain, None))
    )
    assert (errors < 2 * stock_errors + 0.1).all(), (errors, stock_errors)
