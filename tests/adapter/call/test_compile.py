"""``torch.compile`` of a decode step: no graph break, one graph for a growing cache."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import StaticCache

import vrga_ext
from tests.adapter.families import CACHE, CORE, LOOSE, ROWS, build, greedy, logits

LENGTH, STEPS = 48, 8


def decode(family, inputs, forward) -> torch.Tensor:
    """Logits [STEPS + 1, B, vocabulary]: a prefill by the model, then steps by ``forward``."""
    model = family.model
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=LENGTH)
    batch, prompt = inputs["input_ids"].shape
    seen = torch.zeros(batch, 1, 1, LENGTH, dtype=torch.bool)
    seen[:, 0, 0, :prompt] = inputs["attention_mask"].bool()
    logits = [model(**inputs, **{CACHE: cache}, use_cache=True).logits[:, -1]]
    for step in range(STEPS):
        seen[..., prompt + step] = True
        shape = (batch, 1) if family.name == "llava" else (3, batch, 1)
        output = forward(
            input_ids=logits[-1].argmax(-1, keepdim=True),
            attention_mask=seen,
            position_ids=torch.full(shape, prompt + step),
            **{CACHE: cache},
            use_cache=True,
        )
        logits.append(output.logits[:, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("gate", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"backend": "aot_eager"}) for name in CORE),
        # Inductor compiles C++, for most of a minute.
        pytest.param("llava", {"mode": "reduce-overhead"}, marks=pytest.mark.slow),
    ],
)
def test_compiled_decode_step(name, options, gate):
    family = build(name)
    inputs = family.prompt(*ROWS[:2])
    torch._dynamo.reset()
    counters.clear()
    with vrga_ext.enable(family.model, **LOOSE, gate=gate), torch.no_grad():
        eager = decode(family, inputs, family.model.forward)
        compiled = torch.compile(family.model.forward, fullgraph=True, **options)
        ours = decode(family, inputs, compiled)
    with torch.no_grad():
        plain = decode(family, inputs, family.model.forward)
    torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-5)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    assert not torch.equal(eager[1:], plain[1:])


def test_as_many_compilations_as_without_vrga():
    """Over prompts of other lengths, whose images and gated heads are others."""
    family = build("llava")
    prompts = [
        family.prompt(*ROWS[:2]),
        family.prompt(ROWS[1], ROWS[0], seed=1),
        family.prompt([7, (4, 4), 8, 9, 5], [5, 6, (4, 4), *range(11, 25)], seed=2),
    ]

    def compilations() -> tuple[int, list[torch.Tensor]]:
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(family.model.forward, fullgraph=True, backend="eager")
        with torch.no_grad():
            written = [decode(family, prompt, compiled) for prompt in prompts]
        assert not counters["graph_break"]
        return counters["stats"]["unique_graphs"], written

    stock, _ = compilations()
    assert stock > 0
    heads = []
    few = LOOSE | {"efr_percentile": 15, "ratio_percentile": 85}
    with vrga_ext.enable(family.model, **few) as handle:
        ours, written = compilations()
        for prompt, compiled in zip(prompts, written, strict=True):
            with torch.no_grad():
                eager = decode(family, prompt, family.model.forward)
            torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-5)
            heads.append({layer for region in handle.regions for layer, _ in region.visual_heads})
    assert ours == stock
    assert len(set(map(frozenset, heads))) > 1  # the gated layers are others, too


def test_language_model_that_was_compiled_before():
    family = build("llava")
    model, inputs = family.model, family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE):
        expected = logits(greedy(model, inputs, 3))
    torch._dynamo.reset()
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    with vrga_ext.enable(model, **LOOSE):
        ours = logits(greedy(model, inputs, 3))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_compiled_call_that_is_no_prompt(training):
    """Without a cache, or in training mode: no graph break, and what is said is said once."""
    model = build("llava").model.train(training)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4)}
    if not training:
        inputs["use_cache"] = False
    plain = model(**inputs).logits
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with vrga_ext.enable(model, **LOOSE) as handle:
        assert all(torch.equal(compiled(**inputs).logits, plain) for _ in range(2))
    (notice,) = handle.notices
    assert ("training mode" if training else "no KV cache") in notice
    assert counters["stats"]["unique_graphs"] == 1
