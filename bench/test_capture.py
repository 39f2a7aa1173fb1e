"""``generate`` with a capture and without: what recording costs.

A random LLaVA whose text model is mid-size and whose vision tower is small, one prompt of 1,300
tokens of which 1,024 are the image's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import vrga_ext

IMAGE = 3


class Size(NamedTuple):
    """A text model, its prompt and what it writes."""

    layers: int
    hidden: int
    heads: int
    heads_kv: int
    side: int  # patch rows and columns of the image
    prompt: int
    new_tokens: int


SIZE = Size(12, 1024, 16, 2, 32, 1300, 32)
SMOKE_SIZE = Size(2, 64, 4, 2, 4, 24, 3)


class Case(NamedTuple):
    """A model and one prompt for it."""

    model: Any
    inputs: dict[str, Tensor]
    new_tokens: int


def make_case(size: Size) -> Case:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4 * size.side,
        patch_size=4,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=1024,
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads_kv,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    model: Any = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    ids = torch.full((1, size.prompt), 5)
    ids[:, 4 : 4 + size.side**2] = IMAGE
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 4 * size.side, 4 * size.side),
    }
    return Case(model, inputs, size.new_tokens)


def generate(case: Case) -> Tensor:
    """Greedy search of a fixed length."""
    tokens: Tensor = case.model.generate(
        **case.inputs, do_sample=False, max_new_tokens=case.new_tokens
    )
    return tokens


def captured(rows: bool) -> Callable[[Case], Tensor]:
    def run(case: Case) -> Tensor:
        last = case.inputs["input_ids"].shape[1] - 1
        with vrga_ext.capture(case.model, rows=rows, question_end=last) as recording:
            tokens = generate(case)
            assert recording.last.positions.shape[1] == case.new_tokens
        return tokens

    return run


PEERS: dict[str, Callable[[Case], Tensor]] = {
    "off": generate,
    "statistics": captured(False),
    "statistics and rows": captured(True),
}


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    smoke = os.environ.get("VRGA_BENCH_SMOKE", "0") != "0"
    return make_case(SMOKE_SIZE if smoke else SIZE)


@pytest.mark.parametrize("name", PEERS)
def test_generate_under_capture(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    assert torch.equal(PEERS[name](case), generate(case))
    benchmark.group = "generate under capture"
    benchmark(PEERS[name], case)
