"""Train the demo model from scratch: ``python -m tools.demo_model --output FOLDER``.

Two stages on one CPU thread. The first teaches to read a picture: answers of at most a few steps,
about pictures with more and more objects. The second mixes in long answers in which any colour word
counts as right, so that the model learns to keep writing but never learns to read a picture from
far away: long answers then lose their aim, as the paper reports of real models.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from tools.demo_model.recipe import Recipe, check_folders
from vrga_ext.demo.pictures import DemoError


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

    from tools.demo_model.training import train

    torch.set_num_threads(options.threads)
    train(recipe, options.output, options.start, options.first)


if __name__ == "__main__":
    main()
