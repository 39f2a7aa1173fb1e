"""Questions about pictures with a ground-truth region, and scores of the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vrga_ext._arguments import Box
from vrga_ext.config import VRGAConfig
from vrga_ext.demo import answers
from vrga_ext.demo.answers import DEMO_CONFIG, Sample, held_out, prepare
from vrga_ext.demo.build import token
from vrga_ext.demo.language import VOCABULARY
from vrga_ext.demo.scenes import CELL, GRID

LENGTHS = (0, 2, 4, 8, 12, 16, 20)  # steps that the demo model writes before its reply
LONG = 16  # those of the answers that VRGA and its controls are measured on


class Task(ABC):
    """Questions that can be asked in several modes."""

    modes: Sequence[str]  # ways to ask, the shortest answer first
    long: str  # the mode in which VRGA and its controls are measured
    axis: str  # what the modes are, for a figure
    drift_axis: str  # what the tokens of the drift are
    about: str  # where the questions are from
    caveat: str  # what a reader of the figures has to know
    boxes: Sequence[Box]  # the ground-truth region of each question
    sizes: Sequence[tuple[int, int]]  # width and height of its picture, pixels
    groups: np.ndarray  # int [n], seed of each question
    config: VRGAConfig  # VRGA's thresholds on this task
    gammas: Sequence[float]  # further boosts to measure

    @abstractmethod
    def batches(self, mode: str) -> Iterator[tuple[range, Any]]:
        """The questions in order: their indices, and the model's inputs."""

    @abstractmethod
    def answer(self, model: Any, inputs: Any, mode: str) -> Tensor:
        """New tokens ``[B, T]`` of greedy ``generate``."""

    @abstractmethod
    def score(self, index: int, written: Tensor) -> float:
        """How right an answer ``[T]`` is, in [0, 1]."""

    @abstractmethod
    def answer_tokens(self, written: Tensor) -> Tensor:
        """Written tokens ``[T]`` at which the answer's RRAR is measured, bool ``[T]``.

        It is measured while the model reads such a token and writes the next one.
        """

    @abstractmethod
    def drift_tokens(self, written: Tensor) -> Tensor:
        """Written tokens ``[T]`` over which the drift is followed, bool ``[T]``."""


class DemoTask(Task):
    """Held-out pictures for a model of :mod:`tools.demo_model`; a mode is a number of steps.

    Parameters
    ----------
    processor
        The model's.
    samples
        Questions about the pictures of each seed.
    lengths
        Numbers of steps before the reply, ``LONG`` among them; 0 asks for the reply alone.
    gammas
        Further boosts to measure.
    """

    axis = "steps written before the answer"
    drift_axis = "step, where it names the target; last the reply"
    caveat = (
        "Models of 0.9 M parameters, trained from scratch on drawn pictures whose long answers "
        "were never taught to read a picture from far away. This shows the mechanism on a toy; it "
        "says nothing about the size of an effect in a real checkpoint. The whole answer is "
        "written by the model, greedily; only its number of steps is prescribed."
    )
    config = DEMO_CONFIG
    _batch = 128

    def __init__(
        self,
        processor: Any,
        samples: dict[int, list[Sample]],
        lengths: Sequence[int] = LENGTHS,
        gammas: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> None:
        self._processor = processor
        self._steps = {f"{steps} steps" if steps else "direct": steps for steps in lengths}
        self._samples = [sample for drawn in samples.values() for sample in drawn]
        self.modes = tuple(self._steps)
        self.long = f"{LONG} steps"
        self.gammas = gammas
        self.groups = np.repeat(list(samples), [len(drawn) for drawn in samples.values()])
        self.boxes = [_cell_box(sample.cell) for sample in self._samples]
        self.sizes = [sample.image.size for sample in self._samples]
        each = len(self._samples) // len(samples)
        seeds = ", ".join(map(str, samples))
        self.about = f"{len(samples)} x {each} pictures drawn afresh (seeds {seeds})"

    def batches(self, mode: str) -> Iterator[tuple[range, Any]]:
        for first in range(0, len(self._samples), self._batch):
            batch = self._samples[first : first + self._batch]
            inputs = prepare(self._processor, batch, self._steps[mode])
            yield range(first, first + len(batch)), inputs

    def answer(self, model: Any, inputs: Any, mode: str) -> Tensor:
        return answers.generate(model, inputs, self._steps[mode])

    def score(self, index: int, written: Tensor) -> float:
        return float(answers.parse(self._processor, written).is_right(self._samples[index]))

    def answer_tokens(self, written: Tensor) -> Tensor:
        """The last word of the target's name after the last ``so``: the colour comes next."""
        chosen = torch.zeros(len(written), dtype=torch.bool)
        so = (written == token("so")).nonzero()
        if len(so):
            chosen[int(so[-1]) + 2 : int(so[-1]) + 3] = True
        return chosen

    def drift_tokens(self, written: Tensor) -> Tensor:
        """The last word of the target's name in every step, and the one before the colour."""
        ends_name = torch.zeros(len(written), dtype=torch.bool)
        ends_name[:-1] = written[1:] == token(":")
        return ends_name | self.answer_tokens(written)


def draw_samples(count: int, seeds: Sequence[int]) -> dict[int, list[Sample]]:
    """``count`` held-out questions of each seed."""
    return {seed: held_out(count, seed) for seed in seeds}


def check_demo_processor(processor: Any, where: str) -> None:
    """Refuse a model that was not trained on the demo's words.

    Raises
    ------
    ValueError
        The tokenizer is another one.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer.convert_tokens_to_ids(list(VOCABULARY)) != list(range(len(VOCABULARY))):
        raise ValueError(
            "model: wanted one trained by tools.demo_model, or questions for another one (--data), "
            f"got {where}"
        )


def _cell_box(cell: int) -> Box:
    row, column = divmod(cell, GRID)
    return column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL
