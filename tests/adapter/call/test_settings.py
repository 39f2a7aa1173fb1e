"""Settings of one call: forms, samples, threads, nested prompts, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from transformers import GenerationConfig

import vrga_ext
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop

NEW = 5


@pytest.fixture(scope="module")
def llava():
    return build("llava")


def greedy_call(model, **arguments):
    return greedy(model, arguments, NEW)


def alone(family, inputs, config, **options):
    with vrga_ext.enable(family.model, config):
        return logits(greedy(family.model, inputs, NEW, **options))


@pytest.mark.parametrize(
    ("told", "config"),
    [
        (None, LOOSE),
        (True, LOOSE),
        ({"gamma": 1.0}, LOOSE | {"gamma": 1.0}),
        ({"suppress": 0.25, "gate": "dynamic"}, LOOSE | {"suppress": 0.25, "gate": "dynamic"}),
        (vrga_ext.VRGAConfig(**LOOSE | {"widen": 0}), LOOSE | {"widen": 0}),
        (vrga_ext.Guide(gamma=1.0), LOOSE | {"gamma": 1.0}),
        ({"guide": {"suppress": 0.5}}, LOOSE | {"suppress": 0.5}),
        ({"image_span": "vision_span", "question_offset": 1},
         LOOSE | {"image_span": "vision_span", "question_offset": 1}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["generate", "generation_config", "loop"])
def test_a_call_has_its_own_settings(llava, told, config, way):
    inputs = llava.prompt(ROWS[0])
    expected = alone(llava, inputs, vrga_ext.VRGAConfig(**config))
    with vrga_ext.enable(llava.model, **LOOSE) as handle:
        if way == "loop":
            found = greedy_loop(llava.model, inputs | {"vrga": told}, NEW)[1]
        elif way == "generate":
            found = logits(greedy(llava.model, inputs, NEW, vrga=told))
        elif isinstance(told, vrga_ext.VRGAConfig | vrga_ext.Guide):
            with pytest.raises(TypeError, match=r"generation_config\.vrga: wanted plain JSON"):
                greedy(llava.model, inputs, NEW, generation_config=GenerationConfig(vrga=told))
            return
        else:
            plain = GenerationConfig.from_dict(GenerationConfig(vrga=told).to_dict())
            found = logits(greedy(llava.model, inputs, NEW, generation_config=plain))
        assert handle.config == vrga_ext.VRGAConfig(**LOOSE)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_false_leaves_the_model_as_it_is(family):
    inputs = family.prompt(*ROWS)
    plain = logits(greedy(family.model, inputs, NEW))
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        assert torch.equal(logits(greedy(family.model, inputs, NEW, vrga=False)), plain)
        assert [len(region.boosted) for region in handle.regions] == [0, 0, 0]
        assert not torch.equal(logits(greedy(family.model, inputs, NEW)), plain)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_samples_have_their_own(implementation):
    family = build("qwen2_5_vl", attn_implementation=implementation)
    inputs = family.prompt(*ROWS)
    told = [{"gamma": 1.0}, False, {"gate": "dynamic", "min_ratio": 0.5, "suppress": 0.5}]
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        together = logits(greedy(family.model, inputs, NEW, vrga=told))
        regions = list(handle.regions)
        each = [logits(greedy(family.model, inputs, NEW, vrga=own)) for own in told]
        repeated = greedy(family.model, inputs, NEW, vrga=told, num_beams=2, num_return_sequences=2)
    for sample, expected in enumerate(each):
        torch.testing.assert_close(together[:, sample], expected[:, sample], atol=2e-5, rtol=1e-4)
    assert [bool(len(region.boosted)) for region in regions] == [True, False, True]
    assert repeated.sequences.shape[0] == 6


def test_what_is_captured_tells_the_weights_of_each_sample(llava):
    inputs = llava.prompt(*ROWS)
    told = [{"gamma": 1.0}, False, {"suppress": 0.5}]
    with vrga_ext.enable(llava.model, **LOOSE), vrga_ext.capture(llava.model) as recording:
        greedy(llava.model, inputs, NEW, vrga=told)
    capture = recording.last
    assert capture.focus_weight == (2.0, 1.0, 5.0)
    assert capture.image_weight == (1.0, 1.0, 0.5)
    assert capture.generated.gate.flatten(1).any(1).tolist() == [True, False, True]


def test_threads_have_their_own_settings_and_regions(llava):
    told = [None, False, {"gamma": 1.0}, {"gamma": 2.0, "widen": 0}, {"gate": "dynamic"}]
    rows = [llava.prompt(ROWS[index % 2], seed=index) for index in range(len(told))]
    with vrga_ext.enable(llava.model, **LOOSE) as handle:

        def answer(index):
            output = greedy(llava.model, rows[index], NEW, vrga=told[index])
            return logits(output), handle.regions[0].boosted, vrga_ext.regions_of(output)[0].boosted

        expected = [answer(index) for index in range(len(told))]
        with ThreadPoolExecutor(5) as pool:
            found = list(pool.map(answer, [*range(len(told))] * 4))
    for index, run in enumerate(found):
        wanted = expected[index % len(told)]
        torch.testing.assert_close(run[0], wanted[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(run[1], wanted[1])
        assert torch.equal(run[2], wanted[1])


def test_regions_of_another_thread_are_the_handles_last(llava):
    inputs = llava.prompt(ROWS[0])
    with vrga_ext.enable(llava.model, **LOOSE) as handle:
        thread = Thread(target=greedy, args=(llava.model, inputs, NEW))
        thread.start()
        thread.join()
        assert handle.regions[0].visual_heads  # this thread has asked nothing
        greedy(llava.model, inputs, NEW, vrga=False)
        thread = Thread(target=greedy, args=(llava.model, inputs, NEW))
        thread.start()
        thread.join()
        assert not handle.regions[0].visual_heads  # this thread's own


def test_regions_of_an_answer(llava):
    inputs = llava.prompt(ROWS[0])
    plain = greedy(llava.model, inputs, NEW)
    with vrga_ext.enable(llava.model, **LOOSE) as handle:
        first = greedy(llava.model, inputs, NEW)
        expected = handle.regions[0]
        greedy(llava.model, llava.prompt(ROWS[1]), NEW)
        assert vrga_ext.regions_of(first)[0] is expected
        assert vrga_ext.regions_of(first[CACHE])[0] is expected
        with pytest.raises(ValueError, match=r"answer: wanted a KV cache.*got Tensor"):
            vrga_ext.regions_of(first.sequences)
        with pytest.raises(ValueError, match="answer: wanted one of a model in which VRGA is"):
            vrga_ext.regions_of(plain)


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ({"gama": 1.0}, TypeError, "vrga: gama: no such field of VRGAConfig"),
        ({"gamma": -1.0}, ValueError, r"gamma: wanted a number in \[0, 10000\], got -1"),
        ({"guide": {"boxs": []}}, TypeError, "vrga: boxs: no such field of Guide"),
        ("off", TypeError, "vrga: wanted True, False, None, a dictionary.*got 'off'"),
        (
            [None, False],
            ValueError,
            "vrga: wanted one setting, or one for each of 3 samples, got 2",
        ),
        ([], ValueError, "vrga: wanted settings per sample, got an empty list"),
        (
            vrga_ext.Guide(heads=[(9, 0)]),
            ValueError,
            r"heads: wanted \(layer, head\).*got \(9, 0\)",
        ),
        (vrga_ext.Guide(heads=[(0, 9)]), ValueError, r"a head below 4, got \(0, 9\)"),
        (
            vrga_ext.Guide(tokens=[0]),
            ValueError,
            "tokens: wanted positions of image tokens, between",
        ),
    ],
)
@pytest.mark.parametrize("way", ["generate", "loop"])
def test_bad_settings_are_refused_before_the_model_runs(llava, told, error, message, way):
    inputs = llava.prompt(*ROWS)
    ran = []
    watch = llava.model.get_decoder().register_forward_hook(lambda *_: ran.append(1))
    with vrga_ext.enable(llava.model, **LOOSE) as handle:
        expected = logits(greedy(llava.model, inputs, NEW))
        ran.clear()
        call = greedy_call if way == "generate" else type(llava.model).__call__
        with pytest.raises(error, match=message):
            call(llava.model, **inputs, vrga=told)
        assert not ran
        assert torch.equal(logits(greedy(llava.model, inputs, NEW)), expected)
        assert len(handle.regions) == 3
    watch.remove()


def test_settings_of_a_decode_step_are_noticed(llava):
    inputs = llava.prompt(ROWS[0])
    with vrga_ext.enable(llava.model, **LOOSE) as handle, torch.no_grad():
        output = llava.model(**inputs, use_cache=True)
        step = {"input_ids": output.logits[:, -1:].argmax(-1), CACHE: output[CACHE]}
        with pytest.warns(vrga_ext.VRGAWarning, match="vrga= of a call that writes more"):
            llava.model(**step, vrga=False)
        assert handle.regions[0].visual_heads
