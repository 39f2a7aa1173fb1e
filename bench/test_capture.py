"""``generate`` with a capture and without: what recording costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vrga_ext
from bench import models
from bench.case import Measure, Settings
from bench.implementations import NOT_ENABLED
from bench.models import ModelCase
from bench.test_generate import SMOKE
from bench.timing import Sample, seconds_of

# What is kept beside the statistics: nothing, the attention on the image, that on every key.
ROWS: dict[str, Any] = {
    "vrga capture, statistics": False,
    "vrga capture, image rows": True,
    "vrga capture, all rows": "all",
}


class CapturedGenerate:
    """``generate`` of a fixed length, on one model that all implementations share."""

    def __init__(self, case: ModelCase, settings: Settings, new_tokens: int) -> None:
        self._case, self._device, self._new_tokens = case, settings.device, new_tokens
        self._model = models.build(case.model, case.dtype, settings.device)
        self._inputs = models.make_prompt(case, settings.device)
        self._tokens: torch.Tensor | None = None  # of the model as it was

    def check(self, name: str) -> dict[str, Any]:
        """Generate once; the tokens are those of the model as it was."""
        tokens = self._generate(name)
        if self._tokens is None:
            self._tokens = tokens
        assert torch.equal(tokens, self._tokens), "a capture changed the answer"
        return {"device": self._device}

    def sample(self, name: str) -> Sample:
        """Seconds of a generation, installing and building the capture included."""
        return lambda turn: seconds_of(lambda: self._generate(name), self._device)

    def _generate(self, name: str) -> torch.Tensor:
        if name == NOT_ENABLED:
            return self._answer()
        end = self._case.question_end
        with vrga_ext.capture(self._model, rows=ROWS[name], question_end=end) as recording:
            tokens = self._answer()
            assert recording.last.positions.shape[1] == self._new_tokens
        return tokens

    def _answer(self) -> torch.Tensor:
        arguments = {"max_new_tokens": self._new_tokens, "min_new_tokens": self._new_tokens}
        tokens: torch.Tensor = self._model.generate(**self._inputs, **arguments, do_sample=False)
        return tokens


def cases(settings: Settings) -> list[ModelCase]:
    """The mid-size model on a CPU, a real configuration on a GPU."""
    if settings.smoke:
        return [SMOKE]
    model, dtype = ("mid-size", "float32") if settings.device == "cpu" else ("3B", "bfloat16")
    return [ModelCase(model, 1300, dtype=dtype)]


def implementations(settings: Settings) -> list[str]:
    return [NOT_ENABLED, *ROWS]


@pytest.mark.measured(cases=cases, implementations=implementations)
def test_generate_under_capture(
    case: ModelCase, implementation: str, measure: Measure, settings: Settings
) -> None:
    new_tokens = 4 if settings.smoke else 32
    measure(
        "generate under capture", lambda: CapturedGenerate(case, settings, new_tokens), rounds=5
    )
