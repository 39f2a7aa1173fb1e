"""A whole model with VRGA enabled and not, and the way the released code works."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.case import Measure, Settings
from bench.generation import DecodeStep, Generate, PeakMemory, Prefill
from bench.implementations import ADAPTER, DYNAMIC, NOT_ENABLED, RELEASED, STATIC
from bench.models import ModelCase

SMOKE = ModelCase("tiny", 120, side=8)


def prompt_implementations(settings: Settings) -> list[str]:
    """A prompt is read in the same way whichever gate is used afterwards."""
    return [NOT_ENABLED, STATIC, RELEASED]


def step_implementations(settings: Settings) -> list[str]:
    """With gamma 0 the hooks run, and the model's own attention: the adapter's cost alone."""
    return [NOT_ENABLED, ADAPTER, STATIC, DYNAMIC, RELEASED]


def generate_implementations(settings: Settings) -> list[str]:
    return [NOT_ENABLED, STATIC, DYNAMIC, RELEASED]


def cases(settings: Settings) -> list[ModelCase]:
    """The mid-size model on a CPU; on a GPU the real configurations, prompts 1k-32k, batch 1-16."""
    if settings.smoke:
        return [SMOKE]
    if settings.device == "cpu":
        return [ModelCase("mid-size", 1300, dtype=dtype) for dtype in ("float32", "bfloat16")]
    sizes = [
        (1300, 1, 1),
        (4096, 3, 1),
        (16384, 12, 1),
        (32768, 24, 1),
        (1300, 1, 16),
        (4096, 3, 8),
    ]
    return [
        ModelCase(model, prompt, images=images, batch=batch, dtype="bfloat16")
        for model in ("3B", "7B")
        for prompt, images, batch in sizes
    ]


def generate_cases(settings: Settings) -> list[ModelCase]:
    """The same, on a GPU also with a compiled static cache."""
    if settings.device == "cpu":
        return cases(settings)
    return [replace(c, compiled=compiled) for c in cases(settings) for compiled in (False, True)]


def memory_cases(settings: Settings) -> list[ModelCase]:
    """Prompts of growing length."""
    if settings.smoke:
        return [SMOKE]
    model, dtype = ("mid-size", "float32") if settings.device == "cpu" else ("3B", "bfloat16")
    sizes = [(1300, 1), (2048, 1), (4096, 3)]
    return [ModelCase(model, prompt, images=n, dtype=dtype) for prompt, n in sizes]


def memory_implementations(settings: Settings) -> list[str]:
    """A process each, so that the smoke size starts one only."""
    return [STATIC] if settings.smoke else prompt_implementations(settings)


@pytest.mark.measured(cases=cases, implementations=prompt_implementations)
def test_prefill(
    case: ModelCase, implementation: str, measure: Measure, settings: Settings
) -> None:
    measure("prefill", lambda: Prefill(case, settings), rounds=12)


@pytest.mark.measured(cases=cases, implementations=step_implementations)
def test_decode_step(
    case: ModelCase, implementation: str, measure: Measure, settings: Settings
) -> None:
    measure("decode step", lambda: DecodeStep(case, settings), rounds=60)


@pytest.mark.measured(cases=generate_cases, implementations=generate_implementations)
def test_generate(
    case: ModelCase, implementation: str, measure: Measure, settings: Settings
) -> None:
    new_tokens = 4 if settings.smoke else 32
    measure("generate", lambda: Generate(case, settings, new_tokens), rounds=5)


@pytest.mark.measured(cases=memory_cases, implementations=memory_implementations)
def test_peak_memory(
    case: ModelCase, implementation: str, measure: Measure, settings: Settings
) -> None:
    measure("peak memory", lambda: PeakMemory(case, settings), rounds=1)
