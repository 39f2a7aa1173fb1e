"""``torch.compile`` of a decode step: no graph break, one graph for a growing cache."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import StaticCache

import vrga_ext
from tests.adapter.families import CORE, LOOSE, ROWS, build

LENGTH, STEPS = 48, 8


def decode(family, inputs, forward) -> torch.Tensor:
    """Logits [STEPS + 1, B, vocabulary]: a prefill by the model, then steps by ``forward``."""
    model = family.model
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=LENGTH)
    batch, prompt = inputs["input_ids"].shape
    seen = torch.zeros(batch, 1, 1, LENGTH, dtype=torch.bool)
    seen[:, 0, 0, :prompt] = inputs["attention_mask"].bool()
    logits = [model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]]
    for step in range(STEPS):
        seen[..., prompt + step] = True
        shape = (batch, 1) if family.name == "llava" else (3, batch, 1)
        output = forward(
            input_ids=logits[-1].argmax(-1, keepdim=True),
            attention_mask=seen,
            position_ids=torch.full(shape, prompt + step),
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(output.logits[:, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("gate", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"backend": "aot_eager"}) for name in CORE),
        ("llava", {"mode": "reduce-overhead"}),
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
    """Over eight tokens; another prompt whose gated layers are others is compiled anew."""
    family = build("llava")
    inputs = family.prompt(*ROWS[:2])

    def compilations() -> int:
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(family.model.forward, fullgraph=True, backend="eager")
        with torch.no_grad():
            decode(family, inputs, compiled)
        assert not counters["graph_break"]
        return counters["stats"]["unique_graphs"]

    stock = compilations()
    assert stock > 0
    with vrga_ext.enable(family.model, **LOOSE):
        assert compilations() == stock
