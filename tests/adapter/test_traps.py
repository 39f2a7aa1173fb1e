"""Ways of going wrong that no other file shows: each is right, an error, or said once."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.continuous_batching.cache import PagedAttentionCache

import vrga_ext
from tests.adapter.families import CACHE, CORE, LOOSE, ROWS, build, greedy, logits
from vrga_ext import VRGAWarning


@pytest.fixture(scope="module", params=CORE)
def family(request):
    return build(request.param)


@pytest.fixture
def said():
    """A function that lists what VRGA has said so far."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always", VRGAWarning)
        yield lambda: [str(w.message) for w in record if issubclass(w.category, VRGAWarning)]


def test_nothing_found_in_an_image_is_said_once(said):
    """Every token of a single row of patches may be a border sink, if the threshold says so."""
    family = build("qwen2_5_vl")
    inputs = family.prompt([5, (1, 4), 7, 8], ROWS[0])
    plain = logits(greedy(family.model, inputs, 3))
    end = inputs["input_ids"].shape[1] - 1
    config = LOOSE | {"border_max_share": 1.0, "question_end": end}
    with vrga_ext.enable(family.model, **config) as handle:
        runs = [logits(greedy(family.model, inputs, 3)) for _ in range(2)]
    assert [len(region.boosted) > 0 for region in handle.regions] == [False, True]
    assert said() == ["VRGA is not applied to a sample: no token of its image stands out"]
    for run in runs:
        torch.testing.assert_close(run[:, 0], plain[:, 0], atol=1e-5, rtol=1e-5)
        assert (run[1:, 1] - plain[1:, 1]).abs().max() > 1e-3


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


@pytest.mark.parametrize(
    "context",
    [torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["inference mode", "gradients", "autocast"],
)
def test_inside_torch_contexts(family, context):
    """What the model computes in a context is boosted as it is computed there."""
    inputs = family.prompt(*ROWS[:2])
    end = inputs["input_ids"].shape[1] - 1
    outside = contextlib.nullcontext

    def run(where, gamma=None):
        thresholds = LOOSE | {"gamma": gamma, "question_end": end}
        enabled = outside() if gamma is None else vrga_ext.enable(family.model, **thresholds)
        with where(), enabled:
            return logits(greedy(family.model, inputs, 2))

    plain, boosted = run(context), run(context, 4.0)
    assert torch.equal(run(context, 0.0), plain)
    assert torch.equal(boosted[0], plain[0])
    expected = run(outside, 4.0)[1] - run(outside)[1]
    assert torch.nn.functional.cosine_similarity(boosted[1] - plain[1], expected).min() > 0.8
