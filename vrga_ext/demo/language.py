"""The demo model's words: questions, answers, and steps of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vrga_ext.demo.scenes import COLORS, FILLS, SHAPES, Kind, Placed, Scene

MODES = ("directly", "stepwise")
SPECIAL = (
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|unknown|>",
)
WORDS = (
    *("system", "user", "assistant", "what", "color", "is", "the", ":", ";", "so"),
    *MODES,
    *FILLS,
    *SHAPES,
    *COLORS,
    *"0123456789",
)
VOCABULARY = (*SPECIAL, *WORDS)


def question(mode: str, kind: Kind) -> str:
    """The user's words, for example ``stepwise: what color is the hollow star?``."""
    return f"{mode}: what color is the {kind.name}?"


def question_words(mode: str, kind: Kind) -> list[str]:
    """The question as the tokenizer splits it; the last word names the target."""
    return [mode, ":", "what", "color", "is", "the", *kind.name.split()]


def reply(kind: Kind, color: str) -> list[str]:
    """The words that end an answer: ``so hollow star green``."""
    return ["so", *kind.name.split(), color]


def step(target: Kind, other: Placed) -> list[str]:
    """One step of a long answer: the target again, then another object and its colour."""
    return [*target.name.split(), ":", *other.kind.name.split(), other.color, ";"]


def chain(rng: np.random.Generator, scene: Scene, target: Kind, steps: int) -> list[str]:
    """``steps`` steps over the objects other than the target, in a new order each round."""
    others = [placed for placed in scene.objects if placed.kind != target]
    words: list[str] = []
    for other in _rounds(rng, others, steps):
        words += step(target, other)
    return words


def _rounds(rng: np.random.Generator, others: Sequence[Placed], steps: int) -> Iterator[Placed]:
    left = steps
    while left > 0 and others:
        for i in rng.permutation(len(others))[:left]:
            yield others[i]
        left -= len(others)


def unknown_words(text: str) -> list[str]:
    """Words of ``text`` outside the demo model's vocabulary, in order, without repeats."""
    marks = str.maketrans(dict.fromkeys("?.,!", " ") | {mark: f" {mark} " for mark in ":;"})
    words = text.lower().translate(marks).split()
    return list(dict.fromkeys(word for word in words if word not in WORDS))
