"""Arguments of the demo model's training: its numbers and its folders. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vrga_ext.demo.models import check_folder_of_model
from vrga_ext.demo.outputs import check_apart, check_folder

LooseColors = Literal["any", "present"]


@dataclass(frozen=True)
class Recipe:
    """Numbers of the training run.

    Attributes
    ----------
    seed : int
        Of the weights and of every picture.
    first_steps, second_steps : int
        Optimiser steps of each stage.
    batch, long_batch : int
        Sequences of a batch with short answers, and with long ones.
    long_weight : float
        Share of the long answers in the loss of the second stage.
    learning_rate, second_learning_rate : float
        Highest learning rate of each stage.
    align_weight : float
        Weight of the loss that aligns the features of a cell with its words.
    renders : int
        Drawings of each kind and colour.
    most_objects : int
        Most objects of a picture with short answers, from ``ramp_steps`` on.
    ramp_steps : int
        Optimiser steps over which that number grows.
    blind_from : int
        Optimiser step from which heads are made blind.
    blind_share : float
        Share of the heads that do not see the picture.
    short_steps, long_steps : (int, int)
        Least and most steps of an answer.
    short_turns, long_turns : (int, int)
        Least and most questions about one picture.
    long_objects : (int, int)
        Least and most objects of a picture with long answers.
    long_colors : {"any", "present"}
        Colour words that count as right in long answers.
    """

    seed: int = 0
    first_steps: int = 1000
    second_steps: int = 150
    batch: int = 48
    long_batch: int = 24
    long_weight: float = 0.4
    learning_rate: float = 2e-3
    second_learning_rate: float = 5e-4
    align_weight: float = 0.5
    renders: int = 32
    most_objects: int = 12
    ramp_steps: int = 400
    blind_from: int = 650
    blind_share: float = 0.1
    short_steps: tuple[int, int] = (1, 4)
    short_turns: tuple[int, int] = (1, 3)
    long_steps: tuple[int, int] = (6, 22)
    long_turns: tuple[int, int] = (4, 12)
    long_objects: tuple[int, int] = (2, 12)
    long_colors: LooseColors = "any"


def check_folders(output: Path, start: Path | None, first: Path | None) -> None:
    """Check the folders of ``train``.

    Raises
    ------
    DemoError
        One cannot be written, or two of them are the same.
    FileNotFoundError
        There is no model to continue from.
    """
    outputs = [("output", output)] + ([] if first is None else [("first", first)])
    for argument, folder in outputs:
        check_folder(argument, folder)
    if start is not None:
        check_folder_of_model("start", start)
    check_apart(outputs, [] if start is None else [("start", start)], folders=True)
