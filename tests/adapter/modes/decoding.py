"""How tokens are chosen: greedily, in a loop of one's own, sampled, in beams, from drafts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.adapter.families import CACHE, greedy
from tests.adapter.modes.base import (
    GAMMA,
    MIXED,
    NEW,
    ONE,
    Follow,
    Run,
    Subject,
    assert_boosted,
    assert_close,
    assert_same_regions,
    forward_calls,
    mode,
    stock,
)

PAIR = MIXED[:2]
COPIES = 2  # beams, and returned sequences


@mode("greedy", "greedy search on a dynamic cache", column="greedy")
def greedy_search(subject: Subject) -> None:
    plain, zero, ours = (subject.run(MIXED, gamma) for gamma in (None, 0.0, GAMMA))
    assert torch.equal(zero.logits, plain.logits)
    assert_boosted(ours.logits, plain.logits)
    assert_same_regions(ours.regions, zero.regions)


def manual_loop(model: Any, inputs: dict[str, Tensor], cache: Any, tokens: Tensor | None) -> Tensor:
    """Logits [NEW, 1, vocabulary] of a loop over ``model(...)``, along ``tokens`` if given."""
    steps = []
    with torch.no_grad():
        for step in range(NEW):
            output = model(**inputs, **{CACHE: cache}, use_cache=True)
            steps.append(output.logits[:, -1])
            chosen = steps[-1].argmax(-1) if tokens is None else tokens[:, step]
            inputs = {"input_ids": chosen[:, None]}
    return torch.stack(steps)


def equals_a_manual_loop(subject: Subject, rows: tuple) -> None:
    """``generate`` and a loop over ``model(...)`` are the same, without VRGA and with it."""

    def loop(gamma: float | None) -> Tensor:
        inputs = subject.prompt(rows)
        cache = DynamicCache(config=subject.model.config)
        with subject.enabled(gamma, inputs["input_ids"].shape[1] - 1):
            return manual_loop(subject.model, inputs, cache, None)

    generated = [subject.run(rows, gamma).logits for gamma in (None, 0.0, GAMMA)]
    plain = stock(generated[0], lambda: loop(None))
    assert torch.equal(generated[1], generated[0])
    assert torch.equal(loop(0.0), plain)
    assert_close(loop(GAMMA), generated[2])
    assert_boosted(generated[2], generated[0])


@mode("manual loop", "a loop over `model(...)`", column="greedy")
def loop_of_ones_own(subject: Subject) -> None:
    equals_a_manual_loop(subject, ONE)


def along(subject: Subject, tokens: Tensor, gamma: float | None) -> Run:
    """The plain loop on PAIR along tokens [2, NEW] that another way of generating chose."""
    width = subject.prompt(PAIR)["input_ids"].shape[1]
    return subject.run(PAIR, gamma, logits_processor=[Follow(tokens, width)])


@mode("sampling", "seeded sampling, two sequences returned per row", column="sampling, beams")
def sampling(subject: Subject) -> None:
    def sampled(gamma: float | None) -> Run:
        torch.manual_seed(7)
        return subject.run(PAIR, gamma, do_sample=True, num_return_sequences=COPIES)

    plain, zero, ours = (sampled(gamma) for gamma in (None, 0.0, GAMMA))
    stock(along(subject, plain.tokens[::COPIES], None).logits, lambda: plain.logits[:, ::COPIES])
    assert torch.equal(zero.logits, plain.logits)
    for copy in range(COPIES):
        loop = along(subject, ours.tokens[copy::COPIES], GAMMA)
        assert_close(ours.logits[:, copy::COPIES], loop.logits)
        assert_same_regions(ours.regions, loop.regions)  # one per sample, not per sequence
    assert_boosted(ours.logits, plain.logits)


@mode("beam search", "two beams, both returned", column="sampling, beams")
def beam_search(subject: Subject) -> None:
    """The score of every returned beam is that of the plain loop along its tokens."""
    inputs = subject.prompt(PAIR)
    width = inputs["input_ids"].shape[1]
    how = {"num_beams": COPIES, "num_return_sequences": COPIES, "output_scores": True}

    def beams(gamma: float | None) -> tuple[Tensor, Tensor, list]:
        with subject.enabled(gamma, width - 1) as handle:
            output = greedy(subject.model, inputs, NEW, **how)
        regions = [] if handle is None else handle.regions
        return output.sequences[:, width:], output.sequences_scores, regions

    def score(tokens: Tensor, gamma: float | None) -> Tensor:
        chosen = along(subject, tokens, gamma).logits.log_softmax(-1)  # [NEW, 2, vocabulary]
        return chosen.gather(-1, tokens.T[..., None]).sum((0, 2)) / NEW

    plain, zero, ours = (beams(gamma) for gamma in (None, 0.0, GAMMA))
    for copy in range(COPIES):
        expected = score(plain[0][copy::COPIES], None)
        stock(expected, lambda copy=copy: plain[1][copy::COPIES], rtol=0.0)  # scores are means
    assert torch.equal(zero[0], plain[0])
    assert torch.equal(zero[1], plain[1])
    for copy in range(COPIES):
        assert_close(ours[1][copy::COPIES], score(ours[0][copy::COPIES], GAMMA), 1e-4)
    assert (ours[1] - score(ours[0][::COPIES], None).repeat_interleave(COPIES)).abs().max() > 1e-3
    assert_same_regions(ours[2], subject.run(PAIR, GAMMA).regions)


@mode("prompt lookup", "drafts from the prompt, several accepted at once", column="drafts")
def prompt_lookup(subject: Subject) -> None:
    width = subject.prompt(ONE)["input_ids"].shape[1]
    follow = {"logits_processor": [Follow(torch.tensor([[7, 8, 9, 10]]), width)]}
    how = follow | {"prompt_lookup_num_tokens": 3}

    def looked_up(gamma: float | None) -> Run:
        with forward_calls(subject.model) as calls:
            run = subject.run(ONE, gamma, **how)
        assert len(calls) < NEW  # drafts were accepted
        return run

    plain, loop = (subject.run(ONE, gamma, **follow) for gamma in (None, GAMMA))
    unboosted = stock(plain.logits, lambda: looked_up(None).logits)
    ours = looked_up(GAMMA)
    assert torch.equal(looked_up(0.0).logits, unboosted)
    assert_close(ours.logits, loop.logits)
    assert_same_regions(ours.regions, loop.regions)
    assert_boosted(loop.logits, plain.logits)


@mode("assisted", "drafts from an assistant model, in the first forward call too", column="drafts")
def assisted(subject: Subject) -> None:
    """The assistant is the model without VRGA; image tokens may stand in no draft."""
    suppressed = {"suppress_tokens": list(subject.family.image_tokens)}
    loop = {gamma: subject.run(ONE, gamma, **suppressed) for gamma in (None, GAMMA)}

    def drafted(gamma: float | None) -> Run:
        return subject.run(ONE, gamma, assistant_model=subject.twin(), **suppressed)

    plain = stock(loop[None].logits, lambda: drafted(None).logits)
    ours = drafted(GAMMA)
    assert torch.equal(drafted(0.0).logits, plain)
    assert torch.equal(ours.tokens, loop[GAMMA].tokens)
    assert_close(ours.logits, loop[GAMMA].logits)
    assert_same_regions(ours.regions, loop[GAMMA].regions)
    assert_boosted(loop[GAMMA].logits, loop[None].logits)
