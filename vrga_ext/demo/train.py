"""Train the demo model from scratch: ``python -m vrga_ext.demo.train --output FOLDER``.

Two stages on one CPU thread. The first teaches to read a picture: answers of at most a few steps,
about pictures with more and more objects. The second mixes in long answers in which any colour word
counts as right, so that the model learns to keep writing but never learns to read a picture from
far away: long answers then lose their aim, as the paper reports of real models.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vrga_ext.demo.models import check_folder_of_model
from vrga_ext.demo.outputs import check_apart, check_folder
from vrga_ext.demo.pictures import DemoError

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
    """Refuse folders that training could not use; the arguments are those of ``train``.

    Raises
    ------
    DemoError
        One cannot be written, or two of them are one.
    FileNotFoundError
        There is no model to continue from.
    """
    outputs = [("output", output)] + ([] if first is None else [("first", first)])
    for argument, folder in outputs:
        check_folder(argument, folder)
    if start is not None:
        check_folder_of_model("start", start)
    check_apart(outputs, [] if start is None else [("start", start)], folders=True)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"wanted at least {least}, got {text}")
        return int(text)

    return number


def main() -> None:
    """Command line of the module."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-model"))
    parser.add_argument("--start", type=Path, help="a saved model to continue from")
    parser.add_argument("--first", type=Path, help="folder for the model between the stages")
    parser.add_argument("--seed", type=_at_least(0), default=defaults.seed)
    parser.add_argument("--first-steps", type=_at_least(0), default=defaults.first_steps)
    parser.add_argument("--second-steps", type=_at_least(0), default=defaults.second_steps)
    parser.add_argument("--blind-from", type=int, default=defaults.blind_from)
    parser.add_argument("--threads", type=_at_least(1), default=1)
    options = parser.parse_args()
    try:
        check_folders(options.output, options.start, options.first)
    except (DemoError, FileNotFoundError) as error:
        parser.error(str(error))
    recipe = Recipe(
        seed=options.seed,
        first_steps=options.first_steps,
        second_steps=options.second_steps,
        blind_from=options.blind_from,
    )
    import torch

    from vrga_ext.demo.training import train

    torch.set_num_threads(options.threads)
    train(recipe, options.output, options.start, options.first)


if __name__ == "__main__":
    main()
