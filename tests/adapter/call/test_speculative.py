"""Drafted tokens: prompt lookup and assistants, also drafts that are verified with the prompt."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, Lfm2Config, LlamaConfig, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast

import vrga_ext
from tests.adapter.checks import LOOKUP, REPEATED
from tests.adapter.families import CACHE, CORE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop
from vrga_ext import VRGAWarning
from vrga_ext.integrations.transformers.call import speculative as drafts

NEW = 6


class Tokens:
    """Tokens of every call of the decoder."""

    def __init__(self, model) -> None:
        self.calls: list[int] = []
        self.hook = model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.calls.append(kwargs["inputs_embeds"].shape[1])


def ready_assistant(model):
    """The model itself, drafting three tokens, sure of them or not."""
    assistant = copy.deepcopy(model)
    assistant.generation_config.num_assistant_tokens = 3
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant


@pytest.mark.parametrize("gamma", [0.0, 4.0])
@pytest.mark.parametrize("how", ["lookup", "assistant"])
@pytest.mark.parametrize(
    ("name", "attn_implementation"),
    [
        *((name, "sdpa") for name in CORE),
        ("qwen2_5_vl", "eager"),
        ("qwen3_vl", "sdpa"),  # visual features added in early layers
        ("gemma3", "sdpa"),  # masks by kind of layer
        ("gemma4", "sdpa"),  # layers that compute the last rows only
    ],
)
def test_drafts_in_the_first_call_equal_the_loop(name, how, gamma, attn_implementation):
    family = build(name, attn_implementation=attn_implementation)
    model = family.model
    inputs = family.prompt(REPEATED)
    options = LOOKUP if how == "lookup" else {"assistant_model": ready_assistant(model)}
    try:
        plain = greedy(model, inputs, NEW, **options)
    except RuntimeError as error:
        pytest.skip(f"this transformers release cannot do it without VRGA: {error}")
    with vrga_ext.enable(model, **LOOSE | {"gamma": gamma}) as handle:
        tokens, expected = greedy_loop(model, inputs, NEW)
        region = handle.regions[0]
        counted = Tokens(model)
        ours = greedy(model, inputs, NEW, **options)
        counted.hook.remove()
    prompt = inputs["input_ids"].shape[1]
    assert torch.equal(ours.sequences[:, prompt:], tokens)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(handle.regions[0].boosted, region.boosted)
    if gamma:
        assert counted.calls[0] == prompt  # the drafts are a call of their own
        assert counted.calls[1] > 1
    else:
        assert counted.calls[0] > prompt  # nothing is boosted, so nothing is cut
        assert torch.equal(logits(ours), logits(plain))


@pytest.mark.parametrize("how", ["lookup", "assistant"])
@pytest.mark.parametrize(
    ("name", "attn_implementation"),
    [*((name, "sdpa") for name in CORE), ("qwen3_vl", "sdpa"), ("gemma3", "sdpa")]
    + [(name, "eager") for name in CORE],  # with a mask where sdpa needs none
)
def test_drafts_on_a_static_cache_equal_the_loop(name, how, attn_implementation):
    """Its columns are there before there is something in them."""
    family = build(name, attn_implementation=attn_implementation)
    model, inputs = family.model, family.prompt(REPEATED)
    options = LOOKUP if how == "lookup" else {"assistant_model": ready_assistant(model)}
    options = options | {"cache_implementation": "static"}
    try:
        greedy(model, inputs, NEW, **options)
    except (ValueError, IndexError) as error:
        pytest.skip(f"this transformers release cannot do it without VRGA: {error}")
    with vrga_ext.enable(model, **LOOSE):
        tokens, expected = greedy_loop(model, inputs, NEW)
        counted = Tokens(model)
        ours = greedy(model, inputs, NEW, **options)
        counted.hook.remove()
    prompt = inputs["input_ids"].shape[1]
    assert counted.calls[0] == prompt
    assert counted.calls[1] > 1
    assert torch.equal(ours.sequences[:, prompt:], tokens)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)


def two_turns(family, **options):
    """Logits of a second turn, of which only its own tokens are given.

    With all tokens, stock transformers reads what is in the cache once more.
    """
    model = family.model
    cache = DynamicCache(config=model.config)
    turn = greedy(model, family.prompt(ROWS[0]), 3, **{CACHE: cache})
    ids = torch.cat([turn.sequences, torch.tensor([[7, 8, 20, 7, 8]])], 1)
    follow = {"input_ids": ids[:, cache.get_seq_length() :], "attention_mask": torch.ones_like(ids)}
    if family.name != "llava":
        follow["mm_token_type_ids"] = torch.zeros_like(follow["input_ids"])
    return logits(greedy(model, follow, 4, **{CACHE: cache}, **options))


def test_drafts_in_the_first_call_of_a_second_turn(family):
    if not torch.allclose(two_turns(family), two_turns(family, **LOOKUP), atol=1e-4):
        pytest.skip("this transformers release cannot draft on a kept cache without VRGA")
    with vrga_ext.enable(family.model, **LOOSE):
        expected, ours = two_turns(family), two_turns(family, **LOOKUP)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_hidden_states_and_weights_are_those_of_one_call(family):
    """What the cut call returns has the shape and, on the prompt, the values of the whole one."""
    eager = build(family.name, attn_implementation="eager").model
    inputs = family.prompt(REPEATED)
    options = LOOKUP | {"output_hidden_states": True, "output_attentions": True}
    plain = greedy(eager, inputs, 2, **options)
    with vrga_ext.enable(eager, **LOOSE):
        ours = greedy(eager, inputs, 2, **options)
    for kind in ("hidden_states", "attentions"):
        for a, b in zip(getattr(ours, kind)[0], getattr(plain, kind)[0], strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_failure_within_the_drafts_leaves_no_trace(family):
    """An exception after the prompt has been read does not leak its output into later calls."""
    model = family.model
    inputs = family.prompt(REPEATED)
    layer, calls = model.get_decoder().layers[1], []

    def fail(module, args, kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with vrga_ext.enable(model, **LOOSE):
        expected = logits(greedy(model, inputs, 3, **LOOKUP))
        hook = layer.register_forward_pre_hook(fail, with_kwargs=True)
        with pytest.raises(KeyboardInterrupt):
            greedy(model, inputs, 3, **LOOKUP)
        hook.remove()
        again = logits(greedy(model, inputs, 3, **LOOKUP))
    assert torch.equal(again, expected)


def test_what_cannot_be_cut_is_said(family):
    model = family.model
    inputs = family.prompt(REPEATED)

    def add_argument(module, args, kwargs):
        return args, kwargs | {"unheard_of": torch.zeros(1)}

    hook = model.get_decoder().register_forward_pre_hook(add_argument, with_kwargs=True)
    try:
        with (
            vrga_ext.enable(model, **LOOSE, question_end=25 if family.name != "llava" else 23),
            pytest.warns(VRGAWarning, match="since unheard_of cannot be cut"),
        ):
            greedy(model, inputs, 3, **LOOKUP)
    finally:
        hook.remove()


def test_drafts_on_a_decoder_with_a_head_are_said(family, monkeypatch):
    """Its output is logits, which cannot be put together from two calls."""
    monkeypatch.setattr(family.model.get_decoder(), "lm_head", torch.nn.Identity(), raising=False)
    with (
        vrga_ext.enable(family.model, **LOOSE, question_end=25 if family.name != "llava" else 23),
        pytest.warns(VRGAWarning, match="since an output of logits cannot be cut"),
    ):
        greedy(family.model, family.prompt(REPEATED), 3, **LOOKUP)


def test_cut_of_every_kind_of_argument():
    positions = torch.tensor([[True, False, True, True, False]])
    kwargs = {
        "inputs_embeds": torch.arange(5.0).reshape(1, 5, 1),
        "position_ids": torch.arange(15).reshape(3, 1, 5),
        "cache_position": torch.arange(2, 7),
        "attention_mask": torch.arange(7)[None],
        "visual_pos_masks": positions,
        "deepstack_visual_embeds": [torch.tensor([[1.0], [2.0], [3.0]])],
        "use_cache": True,
        CACHE: object(),
    }
    first, rest = drafts.cut(kwargs, 5, 3)
    for name in ("inputs_embeds", "cache_position", "visual_pos_masks"):
        axis = drafts._TOKEN_AXIS[name]
        assert first[name].shape[axis] == 3
        assert torch.equal(torch.cat([first[name], rest[name]], axis), kwargs[name])
    assert rest["position_ids"][:, 0].tolist() == [[3, 4], [8, 9], [13, 14]]
    assert first["attention_mask"].tolist() == [[0, 1, 2, 3, 4]]
    assert torch.equal(rest["attention_mask"], kwargs["attention_mask"])
    assert first["deepstack_visual_embeds"][0].tolist() == [[1.0], [2.0]]
    assert rest["deepstack_visual_embeds"][0].tolist() == [[3.0]]
    assert first[CACHE] is rest[CACHE] is kwargs[CACHE]
    _, rest = drafts.cut(kwargs, 5, 4)
    assert rest["deepstack_visual_embeds"] is None


def test_cut_of_a_full_mask():
    mask = torch.arange(5 * 7).reshape(1, 1, 5, 7)
    first, rest = drafts.cut({"attention_mask": {"full_attention": mask, "other": None}}, 5, 3)
    assert torch.equal(first["attention_mask"]["full_attention"], mask[:, :, :3, :5])
    assert torch.equal(rest["attention_mask"]["full_attention"], mask[:, :, 3:])
    assert first["attention_mask"]["other"] is None


def test_cut_of_a_mask_over_a_static_cache():
    """Which has columns for all tokens in both parts; a window may be shorter than the call."""
    config = LlamaConfig(num_hidden_layers=2, hidden_size=4, num_attention_heads=1)
    config.layer_types, config.sliding_window = ["full_attention", "sliding_attention"], 4
    cache = StaticCache(config=config, max_cache_len=9)
    masks = {
        "full_attention": torch.arange(5 * 9).reshape(1, 1, 5, 9),
        "sliding_attention": torch.arange(5 * 5).reshape(1, 1, 5, 5),
    }
    cut = drafts.cut({"attention_mask": masks}, 5, 3, cache, config.layer_types)
    first, rest = (part["attention_mask"] for part in cut)
    for name, keys in (("full_attention", 9), ("sliding_attention", 4)):
        assert torch.equal(first[name], masks[name][:, :, :3, :keys])
        assert torch.equal(rest[name], masks[name][:, :, 3:])


def test_layers_without_keys_have_no_windows_to_fit():
    """A convolution keeps its past for a rollback, as a sliding window does."""
    layer_types = ["conv", "full_attention"]
    config = Lfm2Config(num_hidden_layers=2, layer_types=layer_types)
    cache = DynamicCache(config=config)
    cache.activate_past_recording()
    cache.update(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4), 1)
    rest = {"attention_mask": {"full_attention": torch.ones(1, 1, 2, 5)}}
    drafts.fit_masks(rest, cache, 2, layer_types, "cpu")
    assert rest["attention_mask"]["full_attention"].shape == (1, 1, 2, 5)


@pytest.mark.parametrize("static", [False, True])
def test_none_in_masks_by_kind_of_layer_is_causal_after_the_prompt(static):
    config = LlamaConfig(num_hidden_layers=1, hidden_size=4, num_attention_heads=1)
    kinds = {"config": config, "max_cache_len": 8} if static else {"config": config}
    cache = (StaticCache if static else DynamicCache)(**kinds)
    cache.update(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4), 0)
    rest = {"attention_mask": {"full_attention": None}}
    drafts.fit_masks(rest, cache, 2, ["full_attention"], "cpu")
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    expected = torch.nn.functional.pad(mask, (0, 3 * static))[None, None]
    assert torch.equal(rest["attention_mask"]["full_attention"], expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_ids", torch.zeros(1, 4)),
        ("attention_mask", torch.zeros(1, 1, 4, 9)),
        ("attention_mask", torch.zeros(1, 4, 9)),
        ("anything", torch.zeros(1)),
        ("anything", [torch.zeros(1)]),
        ("deepstack_visual_embeds", [torch.zeros(1, 1)]),
    ],
)
def test_what_cannot_be_cut(name, value):
    with pytest.raises(drafts.CannotCutError, match=name):
        drafts.cut({name: value}, 5, 3)


def test_join():
    def part(low, high, keys):
        tokens = torch.arange(float(low), high)
        return BaseModelOutputWithPast(
            last_hidden_state=tokens[None, :, None],
            hidden_states=(tokens[None, :, None],),
            attentions=(tokens[None, None, :, None].expand(1, 1, -1, keys), None),
        )

    joined = drafts.join(part(0, 3, 3), part(3, 5, 5))
    assert joined.last_hidden_state.flatten().tolist() == [0, 1, 2, 3, 4]
    assert joined.hidden_states[0].flatten().tolist() == [0, 1, 2, 3, 4]
    assert joined.attentions[0][0, 0, 2].tolist() == [2, 2, 2, 0, 0]
    assert joined.attentions[0][0, 0, 3].tolist() == [3, 3, 3, 3, 3]
    assert joined.attentions[1] is None


def test_drafts_in_the_first_forward_call(family):
    """A prompt whose end occurred before: prompt lookup drafts tokens into the prefill."""
    inputs = family.prompt([5, 6, 7, 8, (4, 4), 9, 11, 5, 6])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        loop = greedy(family.model, inputs, NEW)
        regions = handle.regions
        looked_up = greedy(
            family.model, inputs, NEW, prompt_lookup_num_tokens=2, max_matching_ngram_size=2
        )
    assert torch.equal(looked_up.sequences, loop.sequences)
    assert torch.equal(handle.regions[0].boosted, regions[0].boosted)


def test_assisted_decoding_equals_the_greedy_loop(family):
    assistant = build(family.name, seed=1).model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE):
        loop = greedy(family.model, inputs, NEW)
        assisted = greedy(family.model, inputs, NEW, assistant_model=assistant)
    assert torch.equal(assisted.sequences, loop.sequences)


@pytest.mark.parametrize(
    ("args", "has_head", "cache", "what"),
    [
        ((torch.zeros(1, 1),), False, object(), "a positional argument"),
        ((), True, object(), "an output of logits"),
        ((), False, None, "a call without a KV cache"),
    ],
)
def test_calls_that_cannot_be_cut(args, has_head, cache, what):
    decoder = torch.nn.Module()
    if has_head:
        decoder.lm_head = torch.nn.Linear(1, 1)
    with pytest.raises(drafts.CannotCutError, match=what):
        drafts.check_can_cut(decoder, args, cache)
