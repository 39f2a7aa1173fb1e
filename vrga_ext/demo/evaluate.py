"""How well the demo model answers, with VRGA, without it and under controls, on the same questions.

``python -m vrga_ext.demo.evaluate`` prints every figure; the tests assert most of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vrga_ext
from vrga_ext import VRGAConfig
from vrga_ext.analysis import Paired, blinded, compare, head_mask, rrar
from vrga_ext.demo import interventions
from vrga_ext.demo.answers import (
    DEMO_CONFIG,
    MODEL_PATH,
    Answer,
    Sample,
    answer_all,
    generate,
    held_out,
    load_demo,
    prepare,
)
from vrga_ext.demo.build import token
from vrga_ext.demo.interventions import Hook

LONG = 16  # steps of the long answers that the controls are measured on


@dataclass(frozen=True)
class Score:
    """Answers to a list of questions and which of them are right, bool ``[n]``."""

    answers: tuple[Answer, ...]
    right: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def error(self) -> float:
        """Binomial standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.right))

    def against(self, other: Score) -> Paired:
        """This score compared with ``other`` on the same questions."""
        return compare(self.right, other.right)


def score(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    steps: int,
    config: VRGAConfig | None = None,
    hook: Hook | None = None,
) -> Score:
    """Let the model answer every question.

    Parameters
    ----------
    steps
        Steps the model writes before its reply; 0 asks for the reply alone.
    config
        VRGA's thresholds; ``None`` leaves the model alone.
    hook
        A control from :mod:`vrga_ext.demo.interventions`.
    """
    if config is None:
        answers = list(answer_all(model, processor, samples, steps))
    else:
        with vrga_ext.enable(model, config, processor=processor) as handle:
            handle.region_hook = hook
            answers = list(answer_all(model, processor, samples, steps))
    right = [a.is_right(s) for a, s in zip(answers, samples, strict=True)]
    return Score(tuple(answers), np.array(right))


@dataclass(frozen=True)
class Aim:
    """Relevant-region attention ratio of every head, ``RRAR = mean_B(a) / mean_V(a)``."""

    rrar: Tensor  # [n, L, H]; B is the one token the object asked for stands in
    image_share: Tensor  # [n, L, H], attention on the image
    selected: Tensor  # bool [n, L, H], the visual heads of each question

    @property
    def selected_mean(self) -> float:
        return float(self.rrar[self.selected].mean())

    @property
    def other_mean(self) -> float:
        return float(self.rrar[~self.selected].mean())


def aim(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    steps: int,
    config: VRGAConfig = DEMO_CONFIG,
) -> tuple[Aim, Aim]:
    """RRAR at the question's last token, and where the colour is about to be written.

    The answer is the model's own; with ``config.gamma`` 0 it is the model's without VRGA.
    """
    inputs = prepare(processor, samples, steps)
    rows = torch.arange(len(samples))
    cells = torch.tensor([sample.cell for sample in samples])
    with (
        vrga_ext.enable(model, config, processor=processor),
        vrga_ext.capture(model, rows=True) as recording,
    ):
        written = generate(model, inputs, steps)
    capture = recording.last
    tokens = torch.zeros_like(capture.image_positions, dtype=torch.bool)
    tokens[rows, cells] = True
    found = rrar(capture, tokens)
    share = capture.image_rows().sum(-1)
    heads = capture.image_ratio.shape[2]
    selected = [head_mask(r.visual_heads, capture.layers, heads) for r in capture.regions]

    def at(row: Tensor) -> Aim:
        return Aim(found[rows, :, :, row], share[rows, :, :, row], torch.stack(selected))

    return at(torch.zeros_like(rows)), at(capture.prompt_rows + _name_steps(written))


def _name_steps(written: Tensor) -> Tensor:
    """Index of the token that ends the target's name after the last ``so``, ``[n]``."""
    is_so = written == token("so")
    last = written.shape[1] - 1 - is_so.flip(-1).int().argmax(-1)
    return (last + 2).clamp_max(written.shape[1] - 2)


def report(path: Path, count: int, seed: int) -> None:
    """Print every figure of the demo model."""
    model, processor = load_demo(path)
    samples = held_out(count, seed)
    print(f"{count} held-out questions, {sum(p.numel() for p in model.parameters()):,} parameters")
    _report_heads(model, processor, samples[:128])
    base = {}
    for steps in (0, 4, 8, 12, 16, 20):
        base[steps] = score(model, processor, samples, steps)
        _line(f"{steps} steps, without VRGA", base[steps])
        for gamma in (0.5, 1.0, 2.0, 4.0):
            found = score(model, processor, samples, steps, DEMO_CONFIG.replace(gamma=gamma))
            _line(f"{steps} steps, gamma {gamma:g}", found, base[steps])
    controls: dict[str, Hook] = {
        "permuted tokens": interventions.permuted_tokens(seed),
        "random other heads": interventions.random_heads(seed),
        "all image tokens": interventions.all_image_tokens(),
        "true region": interventions.true_region([sample.cell for sample in samples]),
    }
    for name, hook in controls.items():
        found = score(model, processor, samples, LONG, DEMO_CONFIG, hook)
        _line(f"{LONG} steps, gamma {DEMO_CONFIG.gamma:g}, {name}", found, base[LONG])
    blind = DEMO_CONFIG.replace(mode="mask")
    masks: dict[str, Hook] = {
        "visual heads": blinded(),
        "random other heads": blinded(interventions.random_heads(seed)),
        "lowest-R heads": blinded(interventions.lowest_ratio_heads()),
    }
    for name, hook in masks.items():
        found = score(model, processor, samples, 0, blind, hook)
        _line(f"direct, picture hidden from {name}", found, base[0])


def _report_heads(model: Any, processor: Any, samples: Sequence[Sample]) -> None:
    for steps in (0, LONG):
        question, answer = aim(model, processor, samples, steps, DEMO_CONFIG.replace(gamma=0.0))
        for where, found in (("question", question), ("answer", answer)):
            heads = found.selected.sum((1, 2)).float().mean()
            print(
                f"{steps} steps, {where} row: RRAR of {heads:.1f} visual heads "
                f"{found.selected_mean:.1f}, of the others {found.other_mean:.1f}; image share of "
                f"visual heads {float(found.image_share[found.selected].mean()):.2f}"
            )


def _line(name: str, found: Score, base: Score | None = None) -> None:
    text = f"{name:48s} {found.accuracy:.3f} ± {found.error:.3f}"
    if base is not None:
        paired = found.against(base)
        text += (
            f"   {paired.mean_difference:+.3f}  +{paired.better} -{paired.worse}  z {paired.z:+.1f}"
        )
    print(text, flush=True)


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_PATH)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report(options.model, options.count, options.seed)


if __name__ == "__main__":
    main()
