"""``enable(model)`` on a model that lives on a GPU."""

from __future__ import annotations

import pytest
import torch

import vrga_ext
from tests.adapter.explicit import explicit_greedy
from tests.adapter.families import CORE, LOOSE, ROWS, build, greedy, logits
from tests.gpu.marks import NEEDS_GPU
from vrga_ext import ops

pytestmark = NEEDS_GPU
STEPS = 6


def on_gpu(name, dtype=torch.float32, **text):
    """A tiny model and left-padded inputs, with different images in different columns."""
    family = build(name, **text)
    inputs = {key: value.cuda() for key, value in family.prompt(*ROWS).items()}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    return family.model.to("cuda", dtype), inputs


def largest_difference(ours, theirs):
    """Relative to the largest logit."""
    ours, theirs = logits(ours).float(), logits(theirs).float()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("gate", ["static", "dynamic"])
@pytest.mark.parametrize("name", CORE)
def test_logits_are_those_of_reweighted_weights(name, gate):
    model, inputs = on_gpu(name)
    plain = greedy(model, inputs, STEPS)
    with vrga_ext.enable(model, **LOOSE, gate=gate) as handle:
        ours = greedy(model, inputs, STEPS)
        regions, config = handle.regions, handle.config
    tokens = ours.sequences[:, -STEPS:]
    expected = explicit_greedy(model, inputs, tokens, regions, config)
    assert largest_difference(ours, expected) < 1e-5
    assert largest_difference(ours, plain) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CORE)
def test_bit_identical_without_a_boost(name, dtype):
    model, inputs = on_gpu(name, dtype)
    plain = greedy(model, inputs, STEPS)
    with vrga_ext.enable(model, **LOOSE | {"gamma": 0.0}):
        enabled = greedy(model, inputs, STEPS)
    after = greedy(model, inputs, STEPS)
    for output in (enabled, after):
        assert torch.equal(output.sequences, plain.sequences)
        assert torch.equal(logits(output), logits(plain))


@pytest.mark.parametrize(("dtype", "heads"), [(torch.bfloat16, 4), (torch.float16, 16)])
def test_tokens_of_the_reference_through_tensor_cores(dtype, heads, monkeypatch):
    model, inputs = on_gpu(
        "llava", dtype, head_dim=64, num_attention_heads=heads, num_key_value_heads=2
    )
    served = []
    has_kernel = ops.has_kernel
    monkeypatch.setattr(ops, "has_kernel", lambda *of: served.append(has_kernel(*of)) or served[-1])
    with vrga_ext.enable(model, **LOOSE):
        through_kernels = greedy(model, inputs, STEPS)
    assert served
    assert all(served)
    monkeypatch.setattr(ops, "has_kernel", lambda *_: False)
    with vrga_ext.enable(model, **LOOSE):
        through_reference = greedy(model, inputs, STEPS)
    assert torch.equal(through_kernels.sequences, through_reference.sequences)
    assert largest_difference(through_kernels, through_reference) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("gate", ["static", "dynamic"])
def test_compiled_static_cache(gate):
    """transformers compiles the decode step of a static cache, and captures it in a graph."""
    model, inputs = on_gpu("llava", head_dim=64)
    arguments = {"cache_implementation": "static"}
    graphs = torch._dynamo.utils.counters["stats"]
    with vrga_ext.enable(model, **LOOSE, gate=gate):
        torch._dynamo.reset()
        graphs.clear()
        eager = greedy(model, inputs, STEPS, **arguments, disable_compile=True)
        assert not graphs["unique_graphs"]
        compiled = greedy(model, inputs, STEPS, **arguments)
        assert graphs["unique_graphs"]
        again = greedy(model, inputs, STEPS, **arguments)
    plain = greedy(model, inputs, STEPS, **arguments, disable_compile=True)
    assert torch.equal(compiled.sequences, eager.sequences)
    assert largest_difference(compiled, eager) < 1e-4
    assert largest_difference(again, eager) < 1e-4
    assert largest_difference(eager, plain) > 1e-3


def test_capture_of_every_head():
    model, inputs = on_gpu("qwen2_5_vl")
    plain = greedy(model, inputs, STEPS)
    with vrga_ext.capture(model, rows=True) as recording:
        captured = greedy(model, inputs, STEPS)
    assert torch.equal(logits(captured), logits(plain))
    on_cpu, inputs = build("qwen2_5_vl").model, {key: v.cpu() for key, v in inputs.items()}
    with vrga_ext.capture(on_cpu, rows=True) as expected:
        greedy(on_cpu, inputs, STEPS)
    ours, theirs = recording.last.generated, expected.last.generated
    torch.testing.assert_close(ours.image_ratio.cpu(), theirs.image_ratio, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.image_entropy.cpu(), theirs.image_entropy, atol=1e-4, rtol=1e-3)
