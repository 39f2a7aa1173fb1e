"""The KV cache under the name it has in a call: the new one, the old one, that of other code."""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DynamicCache, Qwen2Config
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast

import vrga_ext
from tests.adapter.checks import LOOKUP, REPEATED
from tests.adapter.families import CACHE, LOOSE, ROWS, greedy, logits
from tests.adapter.loops import greedy_loop
from vrga_ext.integrations.transformers.sequence.kv_cache import (
    CacheArgument,
    layers_with_keys,
    returned_cache,
)

OLD = "past_key_values"


class TakesNew(nn.Module):
    def forward(self, input_ids=None, cache=None, **kwargs):
        """As in transformers from 5.24 on."""


class TakesOld(nn.Module):
    def forward(self, input_ids=None, past_key_values=None, **kwargs):
        """As before, and in code from elsewhere after it."""


class DoesNotTell(nn.Module):
    def forward(self, *args, **kwargs):
        """A wrapper."""


@pytest.mark.parametrize(
    ("module", "given", "found"),
    [
        (TakesNew, {"cache": 1}, 1),
        (TakesNew, {OLD: 1}, 1),  # the decorated forward renames it, after the hooks
        (TakesNew, {"cache": None, OLD: 1}, None),  # which takes the new one of both
        (TakesNew, {"input_ids": 0}, None),
        (TakesOld, {OLD: 1}, 1),
        (TakesOld, {"cache": 2, OLD: 1}, 1),
        (TakesOld, {"cache": 2}, None),  # a paged one, which is not the argument
        (DoesNotTell, {CACHE: 1}, 1),
    ],
)
def test_cache_of_a_call(module, given, found):
    assert CacheArgument(module()).of(given) == found


def test_another_cache_in_a_call():
    assert CacheArgument(TakesNew()).put({OLD: 1, "use_cache": True}, 2) == {
        "cache": 2,
        "use_cache": True,
    }
    assert CacheArgument(TakesOld()).put({"use_cache": True}, 2) == {OLD: 2, "use_cache": True}
    assert CacheArgument(DoesNotTell()).put({}, 2) == {CACHE: 2}
    given = {OLD: 1}
    CacheArgument(TakesOld()).put(given, 2)
    assert given == {OLD: 1}


def test_cache_that_is_refused_is_named_as_the_call_names_it():
    with pytest.raises(TypeError, match=r"^cache: wanted the cache of a decoder.*got int"):
        CacheArgument(TakesNew()).check({"cache": 1})
    with pytest.raises(TypeError, match=rf"^{OLD}: wanted the cache of a decoder.*got int"):
        CacheArgument(TakesOld()).check({OLD: 1})
    CacheArgument(TakesOld()).check({OLD: DynamicCache()})
    CacheArgument(TakesOld()).check({})


def test_paged_cache_is_that_of_continuous_batching():
    """Which may have been started before VRGA was enabled."""
    paged = PagedAttentionCache.__new__(PagedAttentionCache)
    with pytest.raises(TypeError, match=r"PagedAttentionCache: end continuous batching before"):
        CacheArgument(TakesNew()).check({"cache": paged})


def test_cache_of_an_output():
    cache = DynamicCache()
    assert returned_cache(BaseModelOutputWithPast(**{CACHE: cache})) is cache
    assert returned_cache(SimpleNamespace(past_key_values=cache)) is cache
    assert returned_cache((torch.zeros(1), cache)) is cache
    without = BaseModelOutputWithPast(), BaseModelOutput(), (torch.zeros(1), ()), torch.zeros(1)
    assert [returned_cache(output) for output in without] == [None] * 4


def test_layers_with_keys():
    """Neither linear attention, nor a window, nor a layer that has not seen every token."""
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    config = Qwen2Config(
        num_hidden_layers=4, layer_types=kinds, sliding_window=8, use_sliding_window=True
    )
    cache = DynamicCache(config=config)
    for layer, tokens in ((0, 3), (1, 3), (2, 2), (3, 3)):
        cache.update(torch.zeros(1, 1, tokens, 4), torch.zeros(1, 1, tokens, 4), layer)
    assert layers_with_keys(cache, 3, ()) == [0, 3]
    assert layers_with_keys(cache, 2, {0}) == [2, 3]
    assert layers_with_keys(object(), 1, ()) == []


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_old_name_is_as_good(family):
    model, inputs = family.model, family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        _, expected = greedy_loop(model, inputs, 3)
        region = handle.regions[0]
        step, cache, steps = inputs, DynamicCache(config=model.config), []
        for _ in range(3):
            steps.append(model(**step, past_key_values=cache).logits[:, -1])
            step = {"input_ids": steps[-1].argmax(-1, keepdim=True)}
        cache = DynamicCache(config=model.config)
        generated = greedy(model, inputs, 3, past_key_values=cache)
        body_cache = DynamicCache(config=model.config)
        body = model.model(**inputs, past_key_values=body_cache).last_hidden_state
        after = model.model(input_ids=torch.tensor([[9]]), past_key_values=body_cache)
    assert torch.equal(torch.stack(steps), expected)
    torch.testing.assert_close(logits(generated), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(handle.regions[0].boosted, region.boosted)
    with torch.no_grad():
        plain_cache = DynamicCache(config=model.config)
        plain = model.model(**inputs, **{CACHE: plain_cache}).last_hidden_state
        step = model.model(input_ids=torch.tensor([[9]]), **{CACHE: plain_cache})
    assert torch.equal(body, plain)
    assert not torch.equal(after.last_hidden_state, step.last_hidden_state)


def test_no_name_is_asked_for_that_is_deprecated(family, monkeypatch):
    """By calls whose cache the caller, ``generate`` or the decoder makes, and by cut ones."""
    model, inputs = family.model, family.prompt(REPEATED)
    said: list[str] = []
    monkeypatch.setattr(
        logging.Logger, "warning_once", lambda self, message, *_: said.append(message)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        with vrga_ext.enable(model, **LOOSE) as handle, vrga_ext.capture(model) as recording:
            greedy_loop(model, inputs, 2)
            greedy(model, inputs, 3)
            greedy(model, inputs, 3, **LOOKUP)
            with torch.no_grad():
                model(**inputs, use_cache=True)
    assert len(handle.regions[0].boosted)
    assert recording.last is not None
    assert [message for message in said if "cache" in message or OLD in message] == []
