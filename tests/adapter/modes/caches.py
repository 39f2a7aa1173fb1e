"""What is kept of a prompt, and how it is read: static caches, chunks, turns, prefixes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.adapter.families import CACHE, greedy, logits
from tests.adapter.modes.base import (
    GAMMA,
    MIXED,
    NEW,
    ONE,
    Follow,
    Subject,
    assert_boosted,
    assert_close,
    assert_equals_the_loop,
    mode,
    stock,
)
from tests.adapter.modes.decoding import manual_loop


@mode("static cache", "a static cache, padded rows", column="static cache")
def static_cache(subject: Subject) -> None:
    assert_equals_the_loop(subject, MIXED, cache_implementation="static")


@mode("chunked prefill", "chunks of five tokens, the last chunk shorter", column="chunked prefill")
def chunked_prefill(subject: Subject) -> None:
    assert_equals_the_loop(subject, MIXED, prefill_chunk_size=5)


@mode("chunk of one token", "a prefill whose last chunk is one token", column="chunked prefill")
def chunk_of_one_token(subject: Subject) -> None:
    width = subject.prompt(ONE)["input_ids"].shape[1]
    assert_equals_the_loop(subject, ONE, prefill_chunk_size=width - 1)


def media_free(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What has a value per token: no pixels, no grids."""
    shape = inputs["input_ids"].shape
    return {name: tensor for name, tensor in inputs.items() if tensor.shape[:2] == shape}


ANSWER, QUESTION = torch.tensor([[20, 21, 22, 23]]), torch.tensor([[24, 25, 26]])


def _two_turns(subject: Subject, gamma: float | None, *, by_hand: bool) -> Tensor:
    """Logits of the second turn on the first turn's cache, whose answer is ANSWER."""
    model, inputs = subject.model, subject.prompt(ONE)
    cache = DynamicCache(config=model.config)
    ids = torch.cat([inputs["input_ids"], ANSWER, QUESTION], 1)
    first, second = inputs["input_ids"].shape[1], ids.shape[1]
    with subject.enabled(gamma, first - 1) as handle:
        if by_hand:
            manual_loop(model, inputs, cache, ANSWER)
        else:
            follow = [Follow(ANSWER, first)]
            greedy(model, inputs, NEW, **{CACHE: cache}, logits_processor=follow)
        if handle is not None:
            image = handle.regions[0].image_positions
            handle.question_end = second - 1
        if by_hand:
            turn = manual_loop(model, {"input_ids": ids[:, cache.get_seq_length() :]}, cache, None)
        else:
            rest = second - first
            follow_up = {
                name: torch.nn.functional.pad(tensor, (0, rest), value=int("mask" in name))
                for name, tensor in media_free(inputs).items()
            }
            turn = logits(greedy(model, follow_up | {"input_ids": ids}, NEW, **{CACHE: cache}))
        if handle is not None:
            assert torch.equal(handle.regions[0].image_positions, image)
            assert handle.regions[0].question_end == second - 1
    return turn


@mode("several turns", "a second question on the first turn's cache", column="kept cache")
def several_turns(subject: Subject) -> None:
    loop = _two_turns(subject, None, by_hand=True)
    plain = stock(loop, lambda: _two_turns(subject, None, by_hand=False))
    assert torch.equal(_two_turns(subject, 0.0, by_hand=False), plain)
    boosted = _two_turns(subject, GAMMA, by_hand=True)
    assert_close(_two_turns(subject, GAMMA, by_hand=False), boosted)
    assert (boosted - loop).abs().max() > 1e-3


@mode("prefix cache", "one cache of the image, copied and continued twice", column="kept cache")
def prefix_cache(subject: Subject) -> None:
    model, inputs = subject.model, subject.prompt(ONE)
    tokens = media_free(inputs)
    width = inputs["input_ids"].shape[1]
    prefix = inputs | {name: tensor[:, : width - 3] for name, tensor in tokens.items()}

    def continued(gamma: float | None) -> list[Tensor]:
        cache = DynamicCache(config=model.config)
        with subject.enabled(gamma, width - 4) as handle:
            with torch.no_grad():
                model(**prefix, **{CACHE: cache}, use_cache=True)
            if handle is not None:
                handle.question_end = width - 1
            return [
                logits(greedy(model, tokens, NEW, **{CACHE: copy.deepcopy(cache)}))
                for _ in range(2)
            ]

    whole = [subject.run(ONE, gamma).logits for gamma in (None, GAMMA)]
    plain = stock(whole[0], lambda: continued(None)[1])
    for zero in continued(0.0):
        assert torch.equal(zero, plain)
    for ours in continued(GAMMA):
        assert_close(ours, whole[1])
    assert_boosted(whole[1], whole[0])
