"""Copies and pickles of an enabled model, and methods of its instance that others set."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch

import vrga_ext
from tests.adapter.families import LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop

STEPS = 4


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


def test_copies_made_inside_blocks(qwen_or_llava):
    """A copy is neither paused nor watched; nothing would ever end it."""
    inputs = qwen_or_llava.prompt(ROWS[0])
    with vrga_ext.enable(qwen_or_llava.model, **LOOSE) as handle:
        wanted = logits(greedy(qwen_or_llava.model, inputs, STEPS))
        with handle.pause():
            paused = copy.deepcopy(qwen_or_llava.model)
        with vrga_ext.capture(qwen_or_llava.model):
            watched = copy.deepcopy(qwen_or_llava.model)
    for model in (paused, watched):
        assert torch.equal(logits(greedy(model, inputs, STEPS)), wanted)
        assert model._vrga_handle._runtime.capture is None


def test_methods_that_were_set_on_the_instance_come_back(qwen_or_llava):
    model, calls = qwen_or_llava.model, []
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
        plain = greedy(model, qwen_or_llava.prompt(ROWS[0]), 1)
        assert calls == ["batch", "generate"]
    finally:
        del model.generate, model.generate_batch
    assert torch.equal(logits(greedy(model, qwen_or_llava.prompt(ROWS[0]), 1)), logits(plain))


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


def test_shallow_copies_are_refused(qwen_or_llava):
    model, inputs = qwen_or_llava.model, qwen_or_llava.prompt(ROWS[0])
    plain = logits(greedy(model, inputs, 2))
    with vrga_ext.enable(model, **LOOSE):
        wanted = logits(greedy(model, inputs, 2))
        copied = copy.copy(model)
        for call in (vrga_ext.enable, vrga_ext.disable, lambda m: vrga_ext.capture(m).__enter__()):
            with pytest.raises(ValueError, match="shallow copy"):
                call(copied)
        assert torch.equal(logits(greedy(model, inputs, 2)), wanted)
    assert torch.equal(logits(greedy(model, inputs, 2)), plain)
