"""What ``generate`` can be asked for: caches, streams, several sequences, weights, own loops."""

from __future__ import annotations

import importlib.util
import warnings
from threading import Thread

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, TextIteratorStreamer, TextStreamer

import vrga_ext
from tests.adapter.families import CACHE, CORE, IMAGE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop
from vrga_ext import VRGAWarning

NEW = 5


@pytest.fixture(scope="module", params=CORE)
def family(request):
    return build(request.param)


class Numbers:
    """A tokenizer for streamers: every token is written as its id."""

    def decode(self, ids, **kwargs):
        return "".join(f"{int(token)} " for token in ids)


def notices(record) -> list[str]:
    return [str(w.message) for w in record if issubclass(w.category, VRGAWarning)]


def stock_or_skip(model, inputs, new_tokens, how):
    """Generation without VRGA, where this transformers release can do it."""
    try:
        return greedy(model, inputs, new_tokens, **how)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"this transformers release cannot do it without VRGA: {error}")


# ---- caches ------------------------------------------------------------------------------------


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


# ---- streams, threads --------------------------------------------------------------------------


def test_streamers(family, capsys):
    inputs = family.prompt(ROWS[0])
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    with vrga_ext.enable(family.model, **LOOSE):
        tokens, _ = greedy_loop(family.model, inputs, NEW)
        expected = "".join(f"{token} " for token in tokens[0].tolist())
        family.model.generate(
            **inputs, **options, streamer=TextStreamer(Numbers(), skip_prompt=True)
        )
        assert capsys.readouterr().out.strip() == expected.strip()
        streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=60)
        thread = Thread(
            target=family.model.generate, kwargs=inputs | options | {"streamer": streamer}
        )
        thread.start()
        assert "".join(streamer) == expected
        thread.join()


def test_pause_holds_in_threads_that_are_started_in_it(family):
    inputs = family.prompt(ROWS[0])
    plain = greedy(family.model, inputs, 3)
    found = []
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        thread = Thread(target=lambda: found.append(greedy(family.model, inputs, 3)))
        with handle.pause():
            assert handle.paused
            thread.start()
            thread.join()
        assert not handle.paused
    assert torch.equal(logits(found[0]), logits(plain))


# ---- several sequences -------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"do_sample": True}, {"num_beams": 3}], ids=["sample", "beams"])
def test_several_sequences_of_one_prompt(family, how):
    """Each returned sequence has the probability that a plain loop over its tokens gives it."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    options = how | {"num_return_sequences": 2, "max_new_tokens": 4, "min_new_tokens": 4}
    options |= {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    options |= {"output_logits": True}

    def run():
        torch.manual_seed(3)
        return model.generate(**inputs, **options)

    plain = run()
    with vrga_ext.enable(model, gamma=0.0):
        zero = run()
    assert torch.equal(zero.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(zero.logits, plain.logits, strict=True))
    with vrga_ext.enable(model, **LOOSE) as handle:
        ours = run()
        assert len(handle.regions) == 1
        for row, sequence in enumerate(ours.sequences):
            _, loop = greedy_loop(model, inputs, 4, forced=sequence[-4:])
            if "num_beams" in how:
                chosen = loop[:, 0].log_softmax(-1).gather(1, sequence[-4:, None]).sum()
                torch.testing.assert_close(ours.sequences_scores[row], chosen, atol=1e-4, rtol=1e-4)
            else:
                torch.testing.assert_close(logits(ours)[:, row], loop[:, 0], atol=1e-5, rtol=1e-5)


# ---- outputs -----------------------------------------------------------------------------------


def test_weights_of_sdpa_are_not_returned_and_it_is_said(family):
    inputs = family.prompt(ROWS[0])
    options = {"output_attentions": True, "output_hidden_states": True}
    plain = greedy(family.model, inputs, 2, output_hidden_states=True)
    with (
        vrga_ext.enable(family.model, gamma=0.0, question_end=20),
        warnings.catch_warnings(record=True) as record,
    ):
        warnings.simplefilter("always")
        ours = greedy(family.model, inputs, 2, **options)
        greedy(family.model, inputs, 2, **options)
    (notice,) = notices(record)
    assert notice.startswith("attention weights are not returned: 'sdpa'")
    for step, expected in zip(ours.hidden_states, plain.hidden_states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, expected, strict=True))


def test_tuples_instead_of_outputs(family):
    """``return_dict=False`` in a loop of one's own."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        tokens, expected = greedy_loop(model, inputs, 2)
        cache = DynamicCache(config=model.config)
        first = model(**inputs, **{CACHE: cache}, return_dict=False)
        second = model(input_ids=tokens[:, :1], **{CACHE: cache}, return_dict=False)
    assert isinstance(first, tuple)
    torch.testing.assert_close(second[0][:, -1], expected[1], atol=1e-5, rtol=1e-5)


def test_no_cache_is_said_once(family):
    inputs = family.prompt(ROWS[0])
    how = {"use_cache": False, "suppress_tokens": [IMAGE]}  # an image token would need its pixels
    plain = greedy(family.model, inputs, 3, **how)
    with (
        vrga_ext.enable(family.model, **LOOSE),
        warnings.catch_warnings(record=True) as record,
    ):
        warnings.simplefilter("always")
        ours = greedy(family.model, inputs, 3, **how)
        greedy(family.model, inputs, 3, **how)
    assert torch.equal(logits(ours), logits(plain))
    (notice,) = notices(record)
    assert "there is no KV cache" in notice


def test_no_cache_by_the_text_configuration(family):
    """A forward call whose decoder makes no cache, since its configuration says so."""
    inputs = family.prompt(ROWS[0])
    text = family.model.config.get_text_config()
    text.use_cache = False
    try:
        with (
            vrga_ext.enable(family.model, **LOOSE),
            pytest.warns(VRGAWarning, match="there is no KV cache"),
            torch.no_grad(),
        ):
            assert family.model(**inputs).get(CACHE) is None
    finally:
        text.use_cache = True


# ---- loops of somebody else --------------------------------------------------------------------


def test_decoding_loop_given_to_generate(family):
    """``custom_generate``: a callable that is handed the prepared inputs."""

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return model._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE):
        tokens, expected = greedy_loop(family.model, inputs, NEW)
        ours = greedy(family.model, inputs, NEW, custom_generate=loop)
    assert torch.equal(ours.sequences[:, -NEW:], tokens)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)


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


def test_guidance_runs_a_second_prompt_beside_the_first(family):
    """Classifier-free guidance runs the model without the image on a cache of its own."""
    inputs = family.prompt(ROWS[0])
    how = {"guidance_scale": 2.0, "negative_prompt_ids": torch.tensor([[5, 6, 7]])}
    if family.name != "llava":
        pytest.skip("the Qwen models keep the rotary offsets of the last prompt on the module")
    plain = greedy(family.model, inputs, NEW, **how)
    with vrga_ext.enable(family.model, gamma=0.0):
        zero = greedy(family.model, inputs, NEW, **how)
    assert torch.equal(logits(zero), logits(plain))
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        ours = greedy(family.model, inputs, NEW, **how)
        forced = ours.sequences[0, -NEW:]
        _, expected = greedy_loop(family.model, inputs, NEW, forced=forced)
        assert len(handle.regions[0].boosted)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["generate", "forward"])
def test_prompt_inside_another_answer(how):
    """A logits processor that asks the same model something else, in every step."""
    family = build("llava")
    model, inputs, other = family.model, family.prompt(ROWS[0]), family.prompt(*ROWS[:2])

    def ask(tokens, scores):
        if how == "generate":
            model.generate(**other, max_new_tokens=1, do_sample=False)
        else:
            model(**other)
        return scores

    with vrga_ext.enable(model, **LOOSE) as handle:
        expected = greedy(model, inputs, 3)
        regions = handle.regions
        ours = greedy(model, inputs, 3, logits_processor=[ask])
        assert torch.equal(logits(ours), logits(expected))
        assert len(handle.regions) == 1
        assert torch.equal(handle.regions[0].refined_map, regions[0].refined_map)
