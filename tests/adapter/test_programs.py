"""What programs do around a model: interrupt it, copy it, wrap it, change torch's defaults."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import torch

import vrga_ext
from tests.adapter.families import CACHE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop
from vrga_ext import VRGAWarning
from vrga_ext.integrations.transformers.sequence.prompt import current_prompt

STEPS = 4


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava"])
def family(request):
    return build(request.param)


def interrupt(model, inputs):
    """Read a prompt up to its second layer."""

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.get_decoder().layers[1].register_forward_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt), torch.no_grad():
            model(**inputs, use_cache=True)
    finally:
        hook.remove()


def test_an_interrupted_call_is_forgotten(family):
    """No hook of torch's runs after a KeyboardInterrupt."""
    model = family.model
    other, inputs = family.prompt(ROWS[0]), family.prompt(ROWS[1])
    with vrga_ext.enable(model, **LOOSE) as handle:
        _, wanted = greedy_loop(model, inputs, STEPS)
        generated, (region,) = greedy(model, inputs, STEPS), handle.regions
        interrupt(model, other)
        assert torch.equal(greedy_loop(model, inputs, STEPS)[1], wanted)
        interrupt(model, other)
        assert torch.equal(logits(greedy(model, inputs, STEPS)), logits(generated))
        assert torch.equal(handle.regions[0].image_positions, region.image_positions)
        assert handle.regions[0] is not region


def test_disable_forgets_an_interrupted_call():
    family = build("llava")
    with vrga_ext.enable(family.model, **LOOSE):
        interrupt(family.model, family.prompt(ROWS[0]))
    assert current_prompt.get() is None


def test_a_call_may_be_nested_in_another_models_within_its_own():
    first, second = build("llava"), build("llava", seed=1)
    inputs, words = first.prompt(ROWS[0]), {"input_ids": torch.tensor([[5, 6]]), "use_cache": True}
    calls = []

    def then_call(model):
        def hook(*_):
            if calls.count(model) == 0:
                calls.append(model)
                model(**words)

        return hook

    first.model.model.vision_tower.register_forward_pre_hook(then_call(second.model))
    second.model.model.language_model.register_forward_pre_hook(then_call(first.model))
    with vrga_ext.enable(first.model, **LOOSE) as handle, vrga_ext.enable(second.model, **LOOSE):
        with torch.no_grad():
            first.model(**inputs, use_cache=True)
        assert calls == [second.model, first.model]
        assert handle.regions[0].visual_heads


def test_a_step_after_an_interrupted_call_is_a_step(family):
    model, inputs = family.model, family.prompt(ROWS[1])
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        tokens, wanted = greedy_loop(model, inputs, 2)
        output = model(**inputs, use_cache=True)
        interrupt(model, family.prompt(ROWS[0]))
        cache = output.past_key_values
        step = model(input_ids=tokens[:, :1], **{CACHE: cache}, use_cache=True)
    assert torch.equal(step.logits[:, -1], wanted[1])


@pytest.mark.parametrize("options", [{}, {"gate": "dynamic"}])
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_any_default_device(name, options):
    """Meta stands for a GPU; the types' own code runs with either."""
    family = build(name)
    inputs = family.prompt(*ROWS[:2])
    with vrga_ext.enable(family.model, **(LOOSE | options)):
        wanted = greedy(family.model, inputs, STEPS)
        with torch.device("meta"), vrga_ext.capture(family.model, rows=True) as recording:
            got = greedy(family.model, inputs, STEPS)
            rows = recording.last.image_rows()
    assert torch.equal(logits(got), logits(wanted))
    assert rows.isfinite().all()


def test_pickled_model_in_a_new_process(tmp_path):
    family = build("qwen2_5_vl")
    inputs = family.prompt(*ROWS)
    path = tmp_path / "model.pickle"
    with vrga_ext.enable(family.model, **LOOSE):
        path.write_bytes(pickle.dumps((family.model, inputs)))
        wanted = logits(greedy(family.model, inputs, STEPS))
    program = (
        "import pickle, sys, torch\n"
        "model, inputs = pickle.load(open(sys.argv[1], 'rb'))\n"
        "keywords = dict(max_new_tokens=int(sys.argv[2]), do_sample=False)\n"
        "keywords |= dict(output_logits=True, return_dict_in_generate=True)\n"
        "torch.save(torch.stack(model.generate(**inputs, **keywords).logits), sys.argv[3])\n"
    )
    saved = tmp_path / "logits.pt"
    command = [sys.executable, "-c", program, str(path), str(STEPS), str(saved)]
    subprocess.run(command, check=True, capture_output=True)
    torch.testing.assert_close(torch.load(saved), wanted)


def test_handles_of_two_processes_are_told_apart():
    keys = set()
    for _ in range(2):
        with vrga_ext.enable(build("llava").model) as handle:
            keys.add(handle._runtime.key)
    program = "import vrga_ext\nfrom tests.adapter.families import build\n"
    program += "print(vrga_ext.enable(build('llava').model)._runtime.key)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True, text=True
    )
    keys.add(done.stdout.split()[-1])
    assert len(keys) == 3


def test_copies_made_inside_blocks(family):
    """A copy is neither paused nor watched; nothing would ever end it."""
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        wanted = logits(greedy(family.model, inputs, STEPS))
        with handle.pause():
            paused = copy.deepcopy(family.model)
        with vrga_ext.capture(family.model):
            watched = copy.deepcopy(family.model)
    for model in (paused, watched):
        assert torch.equal(logits(greedy(model, inputs, STEPS)), wanted)
        assert model._vrga_handle._runtime.capture is None


def test_methods_that_were_set_on_the_instance_come_back(family):
    model, calls = family.model, []
    model.generate_batch = calls.append
    handle = vrga_ext.enable(model)
    guided = model.generate

    def counted(*args, **kwargs):
        calls.append("generate")
        return guided(*args, **kwargs)

    model.generate = counted
    try:
        handle.disable()
        model.generate_batch("batch")
        plain = greedy(model, family.prompt(ROWS[0]), 1)
        assert calls == ["batch", "generate"]
    finally:
        del model.generate, model.generate_batch
    assert torch.equal(logits(greedy(model, family.prompt(ROWS[0]), 1)), logits(plain))


def test_method_kept_over_a_second_enable_is_no_prompt_of_its_own():
    """A wrapper that stays on the model calls the first handle's generate inside the second's."""
    family, assistant = build("llava"), build("llava", seed=1).model
    model, inputs = family.model, family.prompt(ROWS[0])
    first = vrga_ext.enable(model, **LOOSE)
    guided = model.generate
    model.generate = lambda *args, **kwargs: guided(*args, **kwargs)
    first.disable()
    with vrga_ext.enable(model, **LOOSE):
        ours = greedy(model, inputs, 8, assistant_model=assistant)
        _, expected = greedy_loop(model, inputs, 8)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)


def test_shallow_copies_are_refused(family):
    model, inputs = family.model, family.prompt(ROWS[0])
    plain = logits(greedy(model, inputs, 2))
    with vrga_ext.enable(model, **LOOSE):
        wanted = logits(greedy(model, inputs, 2))
        copied = copy.copy(model)
        for call in (vrga_ext.enable, vrga_ext.disable, lambda m: vrga_ext.capture(m).__enter__()):
            with pytest.raises(ValueError, match="shallow copy"):
                call(copied)
        assert torch.equal(logits(greedy(model, inputs, 2)), wanted)
    assert torch.equal(logits(greedy(model, inputs, 2)), plain)


def test_guidance_reads_a_prompt_without_an_image():
    """Its second prompt is the answer's tokens alone: neither the mask nor a notice is for it."""
    family = build("llava")
    model, inputs = family.model, family.prompt(ROWS[0])
    image = inputs["input_ids"] == model.config.image_token_id
    end = int(inputs["attention_mask"].sum()) - 1
    plain = greedy(model, inputs, STEPS, guidance_scale=1.5)
    with warnings.catch_warnings(), vrga_ext.enable(model, question_end=end, **LOOSE) as handle:
        warnings.simplefilter("error", VRGAWarning)
        boosted = greedy(model, inputs, STEPS, guidance_scale=1.5)
        with handle.image_mask(image):
            declared = greedy(model, inputs, STEPS, guidance_scale=1.5)
        assert len(handle.regions[0].boosted)
    assert not torch.equal(logits(boosted), logits(plain))
    assert torch.equal(logits(declared), logits(boosted))


def test_four_dimensional_mask_over_right_padding():
    """What no row attends to is padding: the question ends before it."""
    family = build("llava")
    inputs = family.prompt(ROWS[0])
    prompt, added = inputs["input_ids"].shape[1], 3
    padded = torch.nn.functional.pad(inputs["input_ids"], (0, added))
    kept = torch.arange(prompt + added) < prompt
    causal = torch.ones(prompt + added, prompt + added, dtype=torch.bool).tril()
    mask = torch.where((causal & kept)[None, None], 0.0, torch.finfo(torch.float32).min)
    with vrga_ext.enable(family.model, **LOOSE) as handle, torch.no_grad():
        family.model(**inputs, use_cache=True)
        (wanted,) = handle.regions
        rest = {"input_ids": padded, "attention_mask": mask}
        family.model(**(inputs | rest), use_cache=True)
        (region,) = handle.regions
    assert region.question_end == wanted.question_end == prompt - 1
    assert region.visual_heads == wanted.visual_heads
    assert torch.equal(region.boosted, wanted.boosted)
