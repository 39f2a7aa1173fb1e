"""Held-out questions, and the model's answers from plain ``generate``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.utils import logging

from vrga_ext import VRGAConfig
from vrga_ext.demo.build import load_processor, token
from vrga_ext.demo.language import MODES, question
from vrga_ext.demo.models import MODEL_PATH, check_folder_of_model
from vrga_ext.demo.scenes import COLORS, Kind, Scene, render, sample_scene

OBJECTS = 12

# Heads among the lowest 30 % by EFR that look at the picture at least as much as the median head:
# the rule of the paper's head-masking study (10 of 32), over all layers. The paper's p = 5 would
# leave at most one of this model's 32 heads. An object fills one token here and no head attends to
# a border, so that widening and border suppression are off.
DEMO_CONFIG = VRGAConfig.paper(gamma=4.0, efr_percentile=30.0, ratio_percentile=50.0)


@dataclass(frozen=True)
class Sample:
    """A question about a drawn picture.

    Attributes
    ----------
    scene : Scene
        The objects of the picture.
    image : PIL.Image.Image
        The picture.
    target : Kind
        The object that the question asks for.
    color : str
        Its colour, the right answer.
    cell : int
        The grid cell it stands in, row-major.

    Examples
    --------
    >>> sample = held_out(1, seed=0)[0]
    >>> sample.scene.find(sample.target).color == sample.color
    True
    """

    scene: Scene
    image: Image.Image
    target: Kind
    color: str
    cell: int


@dataclass(frozen=True)
class Answer:
    """What the model wrote.

    Attributes
    ----------
    words : tuple of str
        All words of the answer.
    named : str
        The object that it names at the end.
    color : str
        The colour that it gives there; empty if it gives none.

    Examples
    --------
    >>> Answer(("so", "hollow", "star", "green"), "hollow star", "green").named
    'hollow star'
    """

    words: tuple[str, ...]
    named: str
    color: str

    def is_right(self, sample: Sample) -> bool:
        """Whether the answer names the object asked for and gives its colour."""
        return self.named == sample.target.name and self.color == sample.color


def load_demo(path: Path = MODEL_PATH) -> tuple[Any, Any]:
    """Load the demo's model and processor, in float32 on the CPU.

    Parameters
    ----------
    path
        Folder of a model saved by the demo's training; the shipped one without it.

    Returns
    -------
    model, processor

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no model in it.
    ValueError
        The folder holds something else, or an incomplete model.

    Examples
    --------
    >>> model, processor = load_demo()
    >>> model.config.model_type
    'qwen2_5_vl'
    """
    check_folder_of_model("model", path)
    with _quiet(), errors_of_loading(path):
        processor = load_processor(path)
        _check_weights(path)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, found = loaded
        missing = sorted(found["missing_keys"])
        if missing:
            raise ValueError(f"no weights {', '.join(missing[:3])}, {len(missing)} in all")
    return model.eval(), processor


def _check_weights(path: Path) -> None:
    """The file holds as many weights as the configuration asks for.

    transformers would draw missing ones at random, which takes very long for a large model.
    """
    with safe_open(path / "model.safetensors", framework="pt") as file:
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(config)
    wanted = sum(parameter.numel() for parameter in empty.parameters())
    if stored < wanted:
        raise ValueError(f"{stored:,} weights, of {wanted:,} that its configuration names")


@contextmanager
def errors_of_loading(where: str | Path) -> Iterator[None]:
    """Turn errors of transformers about a file's content into a ValueError that names the model.

    They may be of any type. Errors about missing files and packages pass unchanged.
    """
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(
            f"model: wanted a saved model with its processor, got {where} "
            f"({type(error).__name__}: {error})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its notices about other classes."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def held_out(count: int, seed: int, objects: int = OBJECTS) -> list[Sample]:
    """Questions about new pictures, on which the model was not trained.

    Each picture holds the target, its look-alike (same shape, other fill, other colour) and further
    objects.

    Parameters
    ----------
    count
        Number of questions.
    seed
        Determines the pictures.
    objects
        Objects in each picture.

    Returns
    -------
    list of Sample

    Examples
    --------
    >>> [sample.target.name for sample in held_out(2, seed=0)] == [
    ...     sample.target.name for sample in held_out(2, seed=0)
    ... ]
    True
    """
    samples = []
    for child in np.random.SeedSequence([2026, seed]).spawn(count):
        rng = np.random.default_rng(child)
        scene = sample_scene(rng, objects)
        target = scene.objects[0]
        image = render(scene, rng)
        samples.append(Sample(scene, image, target.kind, target.color, target.cell))
    return samples


class ForcedSteps(LogitsProcessor):
    """Force a long answer to have ``steps`` steps, whose words remain the model's choice.

    At the start of a step the word ``so`` is forbidden until ``steps`` steps are written; then it
    is the only word allowed.
    """

    def __init__(self, steps: int, prompt_length: int) -> None:
        self.steps = steps
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written = input_ids[:, self.prompt_length :]
        done = (written == token(";")).sum(-1)  # [B]
        starts = torch.ones_like(done, dtype=torch.bool)
        if written.shape[1]:
            starts = written[:, -1] == token(";")
        so = torch.zeros_like(scores, dtype=torch.bool)
        so[:, token("so")] = True
        ends = so.clone()
        ends[:, token("<|im_end|>")] = True
        early = (starts & (done < self.steps))[:, None] & ends
        late = (starts & (done >= self.steps))[:, None] & ~so
        return scores.masked_fill(early | late, -torch.inf)  # type: ignore[return-value]


def messages(image: Image.Image, text: str) -> list[dict[str, Any]]:
    """A conversation of one user turn: a picture, then the question.

    Parameters
    ----------
    image
        The picture.
    text
        The question.

    Returns
    -------
    list of dict
        For ``processor.apply_chat_template``.
    """
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def prepare(processor: Any, samples: Sequence[Sample], steps: int) -> Any:
    """The model's inputs for a batch of questions.

    Parameters
    ----------
    processor
        The demo's.
    samples
        B questions.
    steps
        0 asks for a direct answer, any other number for a stepwise one.

    Returns
    -------
    BatchFeature
        ``input_ids`` [B, S] and the other arguments of ``generate``.

    Examples
    --------
    >>> _, processor = load_demo()
    >>> prepare(processor, held_out(2, seed=0), steps=0)["input_ids"].shape[0]
    2
    """
    mode = MODES[1] if steps else MODES[0]
    return processor.apply_chat_template(
        [messages(sample.image, question(mode, sample.target)) for sample in samples],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def generate(model: Any, inputs: Any, steps: int) -> torch.Tensor:
    """Greedy ``model.generate``; returns the new tokens only, ``[B, T]``."""
    length = inputs["input_ids"].shape[1]
    forced = LogitsProcessorList([ForcedSteps(steps, length)] if steps else [])
    with torch.inference_mode():
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=8 * steps + 8, logits_processor=forced
        )
    return output[:, length:]


def parse(processor: Any, written: torch.Tensor) -> Answer:
    """Read the object and the colour after the last ``so`` of an answer ``[T]``."""
    tokens = processor.tokenizer.convert_ids_to_tokens(written.tolist())
    words = [word for word in tokens if not word.startswith("<|")]
    last = max((i for i, word in enumerate(words) if word == "so"), default=len(words))
    tail = words[last + 1 : last + 4]
    color = tail[2] if len(tail) == 3 else ""
    return Answer(tuple(words), " ".join(tail[:2]), color)


def color_place(written: torch.Tensor) -> int | None:
    """Index of the colour in an answer ``[T]``, as :func:`parse` reads it; None if it has none."""
    so = (written == token("so")).nonzero()
    place = int(so[-1]) + 3 if len(so) else len(written)
    found = place < len(written) and int(written[place]) in map(token, COLORS)
    return place if found else None


def answer_all(
    model: Any, processor: Any, samples: Sequence[Sample], steps: int, batch: int = 128
) -> Iterator[Answer]:
    """Answer every question in batches, in order."""
    for first in range(0, len(samples), batch):
        inputs = prepare(processor, samples[first : first + batch], steps)
        for written in generate(model, inputs, steps):
            yield parse(processor, written)
