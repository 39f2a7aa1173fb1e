"""One captured answer of the demo model, made once for all tests of pictures and pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image

import vrga_ext
from vrga_ext.demo.answers import DEMO_CONFIG, generate, held_out, load_demo, prepare

STEPS = 2


@dataclass(frozen=True)
class Told:
    """A picture, the answer's tokens and the capture, with the prompt's last row."""

    image: Image.Image
    tokens: list[str]
    answer: torch.Tensor  # int64 [T]
    capture: vrga_ext.Capture


@cache
def told() -> Told:
    model, processor = load_demo()
    samples = held_out(1, seed=7)
    inputs = prepare(processor, samples, STEPS)
    last = inputs["input_ids"].shape[1] - 1
    with (
        vrga_ext.enable(model, DEMO_CONFIG, processor=processor),
        vrga_ext.capture(model, prompt_rows=[last], rows=True) as recording,
    ):
        answer = generate(model, inputs, STEPS)[0]
    tokens = processor.tokenizer.convert_ids_to_tokens(answer.tolist())
    return Told(samples[0].image, tokens, answer, recording.last)
