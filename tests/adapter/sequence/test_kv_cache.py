"""Sequences that move, come and go in a KV cache, and kinds of caches."""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
import pickle
import sys
import weakref

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache
from transformers.generation.continuous_batching.cache import PagedAttentionCache

import vrga_ext
from tests.adapter.checks import stock_or_skip
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop


def test_repeated_cache(family):
    """A cache whose rows were repeated is continued in every row."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        token = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        single = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        cache.batch_repeat_interleave(3)
        if family.name != "llava":
            model.model.rope_deltas = model.model.rope_deltas.repeat_interleave(3, 0)
        repeated = model(input_ids=token.expand(3, 1), **{CACHE: cache}).logits
    torch.testing.assert_close(repeated, single.expand_as(repeated), atol=1e-5, rtol=1e-5)


def first_step(family, cache) -> tuple[Tensor, Tensor]:
    """Logits of a step after a prompt of two rows, on a copy of the cache, and its tokens."""
    inputs = family.prompt(ROWS[0], [11, (4, 4), 12, 13, 14, 15, 16])
    token = family.model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
    return family.model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits, token


def moved_step(family, cache, token, rows) -> Tensor:
    """Logits of the same step on a cache of these rows."""
    deltas = getattr(family.model.model, "rope_deltas", None)
    if deltas is not None:
        family.model.model.rope_deltas = deltas[rows]
    return family.model(input_ids=token[rows], **{CACHE: cache}).logits


@pytest.mark.parametrize(
    ("rows", "moves"),
    [
        ([1, 0], [("reorder_cache", torch.tensor([1, 0]))]),
        ([0, 1, 0, 1], [("reorder_cache", torch.tensor([0, 1, 0, 1]))]),
        ([1], [("batch_select_indices", torch.tensor([False, True]))]),
        ([1, 1], [("batch_select_indices", torch.tensor([1])), ("batch_repeat_interleave", 2)]),
    ],
    ids=["exchanged", "tiled", "dropped", "dropped and repeated"],
)
def test_boosts_follow_the_rows_of_a_cache(family, rows, moves):
    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=family.model.config)
        expected, token = first_step(family, cache)
        copied = pickle.loads(pickle.dumps(cache))
        for name, argument in moves:
            with torch.device("meta"):  # whatever the default device is
                getattr(copied, name)(argument)
        ours = moved_step(family, copied, token, rows)
    torch.testing.assert_close(ours, expected[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen3_5"])
def test_boosts_follow_the_rows_of_other_caches(name):
    """A static cache, and one whose layers are of several kinds."""
    family, rows = build(name), torch.tensor([1, 0])
    config = family.model.config.get_text_config()
    static = StaticCache(config=config, max_cache_len=40)
    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        cache = static if name == "llava" else DynamicCache(config=config)
        expected, token = first_step(family, cache)
        cache.reorder_cache(beam_idx=rows)
        ours = moved_step(family, cache, token, rows)
    torch.testing.assert_close(ours, expected[rows], atol=1e-5, rtol=1e-5)


def test_compiled_code_may_move_rows(family):
    rows = torch.tensor([1, 0])

    @torch.compile(backend="eager")
    def exchange(cache):
        cache.batch_select_indices(rows)
        return cache.layers[0].keys.sum()

    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=family.model.config)
        expected, token = first_step(family, cache)
        exchange(cache)
        ours = moved_step(family, cache, token, rows)
    torch.testing.assert_close(ours, expected[rows], atol=1e-5, rtol=1e-5)


def test_rows_are_followed_once_whoever_imports_the_package_again(monkeypatch):
    methods = [getattr(Cache, name) for name in ("reorder_cache", "batch_select_indices")]
    monkeypatch.delitem(sys.modules, "vrga_ext.integrations.transformers.sequence.kv_cache")
    importlib.import_module("vrga_ext.integrations.transformers.sequence.kv_cache")
    assert methods == [getattr(Cache, m.__name__) for m in methods]


def test_cache_is_freed_with_its_last_reference(family):
    """At once, not when the garbage collector comes by."""
    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=family.model.config)
        family.model(**family.prompt(ROWS[0]), **{CACHE: cache})
        cache.reorder_cache(torch.tensor([0]))
        gone = weakref.ref(cache)
        gc.disable()
        try:
            del cache
            assert gone() is None
        finally:
            gc.enable()


def test_rows_added_to_a_cache_are_said_once(family, said):
    """Past the cache's methods: nobody knows whose the third one is, nor where it goes next."""
    model = family.model
    inputs = family.prompt(ROWS[0], ROWS[0])
    end = inputs["input_ids"].shape[1] - 1
    with torch.no_grad(), vrga_ext.enable(model, **LOOSE, question_end=end):
        cache = DynamicCache(config=model.config)
        token = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[[0, 1, 1]], layer.values[[0, 1, 1]]
        if getattr(model.model, "rope_deltas", None) is not None:
            model.model.rope_deltas = model.model.rope_deltas[[0, 1, 1]]
        step = {"input_ids": token[[0, 1, 1]]}
        first = model(**step, **{CACHE: copy.deepcopy(cache)}).logits
        cache.reorder_cache(torch.tensor([0, 1, 2]))
        second = model(**step, **{CACHE: copy.deepcopy(cache)}).logits
        fewer = copy.deepcopy(cache)
        fewer.batch_select_indices(torch.tensor([1, 0]))  # as many as before, yet not known again
        if getattr(model.model, "rope_deltas", None) is not None:
            model.model.rope_deltas = model.model.rope_deltas[[1, 0]]
        third = model(input_ids=token[[1, 0]], **{CACHE: copy.deepcopy(fewer)}).logits
    assert said() == ["VRGA is not applied: sequences were added to or taken out of the KV cache"]
    with torch.no_grad():
        assert torch.equal(third, model(input_ids=token[[1, 0]], **{CACHE: fewer}).logits)
        if getattr(model.model, "rope_deltas", None) is not None:
            model.model.rope_deltas = model.model.rope_deltas[[1, 0, 0]]
        plain = model(**step, **{CACHE: cache}).logits
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)


@pytest.mark.parametrize(
    "cache",
    [((), ()), object(), PagedAttentionCache.__new__(PagedAttentionCache)],
    ids=["tuple", "other", "paged"],
)
def test_caches_without_columns_are_refused(family, cache):
    inputs = family.prompt(ROWS[0])
    with (
        vrga_ext.enable(family.model, **LOOSE),
        torch.no_grad(),
        pytest.raises(TypeError, match=f"{CACHE}: wanted the cache of a decoder"),
    ):
        family.model(**inputs, **{CACHE: cache})


NEW = 5


@pytest.mark.skipif(not importlib.util.find_spec("hqq"), reason="hqq, which quantises, is missing")
def test_quantised_cache():
    """Statistics and boosts see the values that the cache gives back."""
    model = build("llava").model  # the Qwen models do not support this cache
    inputs = build("llava").prompt(ROWS[0])
    options = {"backend": "hqq", "nbits": 8}

    def how():  # some releases take the backend out of the dictionary
        return {"cache_implementation": "quantized", "cache_config": dict(options)}

    stock = stock_or_skip(model, inputs, NEW, how())
    with vrga_ext.enable(model, gamma=0.0):
        assert torch.equal(logits(greedy(model, inputs, NEW, **how())), logits(stock))
    with vrga_ext.enable(model, **LOOSE):
        _, expected = greedy_loop(model, inputs, NEW)
        cache = QuantizedCache(config=model.config.get_text_config(), **options)
        _, loop = greedy_loop(model, inputs, NEW, cache=cache)
        ours = logits(greedy(model, inputs, NEW, **how()))
    torch.testing.assert_close(ours, loop, atol=1e-5, rtol=1e-5)
    lost = (logits(stock) - logits(greedy(model, inputs, NEW))).abs().max()  # by quantising
    assert (ours - expected).abs().max() < 4 * lost
    assert (ours - logits(stock))[1:].abs().max() > 4 * lost


@pytest.mark.parametrize("how", ["offloaded", "offloaded_static"])
def test_offloaded_cache(how):
    if not torch.cuda.is_available():
        pytest.skip("transformers offloads caches from CUDA devices only")
    family = build("llava")
    model = family.model.cuda()
    inputs = {name: tensor.cuda() for name, tensor in family.prompt(ROWS[0]).items()}
    with vrga_ext.enable(model, **LOOSE):
        expected = greedy(model, inputs, NEW)
        ours = greedy(model, inputs, NEW, cache_implementation=how)
    torch.testing.assert_close(logits(ours), logits(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 4.0])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 2},
    ],
    ids=["dynamic", "static", "lookup"],
)
def test_sliding_window_in_some_layers(how, gamma):
    """Only the layer with full attention is boosted; the others keep eight keys."""
    windows = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}
    family = build("qwen2_5_vl", **windows)
    inputs = family.prompt([5, 6, 7, 8, (4, 4), 9, 11, 5, 6])
    plain = stock_or_skip(family.model, inputs, 8, how)
    with vrga_ext.enable(family.model, **LOOSE | {"gamma": gamma}) as handle:
        tokens, expected = greedy_loop(family.model, inputs, 8)
        ours = greedy(family.model, inputs, 8, **how)
    assert handle.regions[0].layers == (0,)
    assert torch.equal(ours.sequences[:, -8:], tokens)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)
    if gamma:
        assert (logits(ours) - logits(plain))[1:].abs().max() > 1e-2
    else:
        assert torch.equal(logits(ours), logits(plain))


def test_contrastive_search_over_repeated_rows(family):
    """Each candidate token is tried on a row of its own, as contrastive search does."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        first = model(**inputs, **{CACHE: cache}).logits[:, -1]
        candidates = first.topk(3).indices[0]
        expected = [greedy_loop(model, inputs, 2, forced=c.expand(2))[1][1] for c in candidates]
        cache.batch_repeat_interleave(3)
        tried = model(input_ids=candidates[:, None], **{CACHE: cache}).logits[:, -1]
    torch.testing.assert_close(tried, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_cache_of_an_encoder_decoder_is_refused(family):
    model = family.model
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        with pytest.raises(TypeError, match=f"{CACHE}: .* got EncoderDecoderCache"):
            model(**family.prompt(ROWS[0]), **{CACHE: cache})
        with pytest.raises(TypeError, match=f"{CACHE}: .* got tuple"):
            model(**family.prompt(ROWS[0]), **{CACHE: ((torch.zeros(1), torch.zeros(1)),)})
        model(**family.prompt(ROWS[0]))  # and the model goes on
