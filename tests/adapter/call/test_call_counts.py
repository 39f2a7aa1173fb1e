"""How many Python calls of ours one ``generate`` makes, and in how many files.

What a reader has to follow to understand a call, and what a decode step costs beside the kernels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from transformers import LogitsProcessor, LogitsProcessorList

import vrga_ext
from vrga_ext.demo.answers import held_out, load_demo, prepare

PACKAGE = Path(vrga_ext.__file__).parent
TOKENS = 4


class Steps(LogitsProcessor):
    """Counts the forward calls: it is called after each of them."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.done += 1
        return scores


@pytest.fixture(scope="module")
def calls() -> list[list[str]]:
    """Of the prompt's forward call and of each decode step: the file of every call of ours."""
    model, processor = load_demo()
    inputs = prepare(processor, held_out(1, seed=0), steps=0)
    steps = Steps()
    found: list[list[str]] = [[] for _ in range(TOKENS + 1)]

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            found[steps.done].append(str(path.relative_to(PACKAGE)))

    with vrga_ext.enable(model, processor=processor, gamma=4.0) as handle:
        model.generate(**inputs, max_new_tokens=TOKENS)  # what is found once per model or process
        assert handle.regions[0].visual_heads
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            model.generate(
                **inputs, max_new_tokens=TOKENS, logits_processor=LogitsProcessorList([steps])
            )
        finally:
            sys.setprofile(before)
    assert steps.done == TOKENS
    return found[:TOKENS]


def test_reading_a_prompt(calls):
    assert "steering.py" in calls[0]
    assert len(calls[0]) <= 225
    assert len(set(calls[0])) <= 17, sorted(set(calls[0]))


def test_decode_step(calls):
    for step in calls[1:]:
        assert "ops.py" in step  # a head is reweighted
        assert len(step) <= 35
        assert len(set(step)) <= 6, sorted(set(step))
