"""Training batches of the demo model: pictures drawn once per distinct cell, texts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tools.demo_model.recipe import LooseColors
from vrga_ext.demo.build import normalise, token
from vrga_ext.demo.language import chain, question_words, reply
from vrga_ext.demo.scenes import (
    CELL,
    COLORS,
    GRID,
    KINDS,
    Kind,
    Placed,
    Scene,
    draw_cell,
    sample_scene,
)

IGNORE = -100
PREFIX = (
    "<|im_start|>",
    "user",
    "<|vision_start|>",
    *["<|image_pad|>"] * GRID**2,
    "<|vision_end|>",
)
IMAGE_SLICE = slice(3, 3 + GRID**2)
_COLORS = list(COLORS)
_EMPTY = len(KINDS) * len(_COLORS)


Word = tuple[str, str | None]  # the word that stands there, and the word to be learnt there


@dataclass(frozen=True)
class Batch:
    """One batch of B sequences of S tokens over a palette of P distinct cells.

    Attributes
    ----------
    patches : float32 [P * 4, 1176]
        Pixels of the palette, as the image processor lays them out.
    palette : int64 [P]
        Template of each palette cell; ``_EMPTY`` for an empty one.
    cells : int64 [B, GRID * GRID]
        Index into the palette of each cell of a picture.
    input_ids : int64 [B, S]
        The tokens.
    labels : int64 [B, S]
        The tokens to be learnt; ``IGNORE`` where there is none.
    loose : bool [B, S]
        True where any colour of ``accepted`` is right.
    accepted : bool [B, colours]
        Colours that are right where ``loose`` is True.
    """

    patches: torch.Tensor
    palette: torch.Tensor
    cells: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    loose: torch.Tensor
    accepted: torch.Tensor


class CellBank:
    """Drawings of every (kind, colour), ``renders`` of each, made once from ``seed``."""

    def __init__(self, seed: int, renders: int) -> None:
        rng = np.random.default_rng(seed)
        templates = [(kind, color) for kind in KINDS for color in _COLORS]
        drawn = [
            [draw_cell(rng, kind, color) for _ in range(renders)]
            for kind, color in [*templates, (None, None)]
        ]
        pixels = normalise(torch.from_numpy(np.array(drawn)))  # [T, R, CELL, CELL, 3]
        self.patches = to_patches(pixels)  # [T, R, 4, 1176]
        self.renders = renders

    def draw_palette(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """One drawing of each template: ``(patches [P * 4, 1176], templates [P])``."""
        templates = torch.arange(_EMPTY + 1)
        chosen = torch.from_numpy(rng.integers(self.renders, size=_EMPTY + 1))
        return self.patches[templates, chosen].flatten(0, 1), templates


def to_patches(pixels: torch.Tensor) -> torch.Tensor:
    """Cells ``[..., CELL, CELL, 3]`` to patch rows ``[..., 4, 3 * 2 * 14 * 14]``."""
    half = CELL // 2
    split = pixels.unflatten(-3, (2, half)).unflatten(-2, (2, half))  # [..., 2, 14, 2, 14, 3]
    ordered = split.movedim((-5, -3, -1), (-5, -4, -3))  # [..., 2, 2, 3, 14, 14]
    doubled = ordered.unsqueeze(-3).expand(*ordered.shape[:-2], 2, half, half)
    return doubled.flatten(-4).flatten(-3, -2)


def template_of(kind: Kind, color: str) -> int:
    """Index of a (kind, colour) in a palette."""
    return KINDS.index(kind) * len(_COLORS) + _COLORS.index(color)


def sample_batch(
    rng: np.random.Generator,
    bank: CellBank,
    size: int,
    objects: tuple[int, int],
    steps: tuple[int, int],
    turns: tuple[int, int],
    *,
    loose_colors: LooseColors | None = None,
    question_color: bool = False,
) -> Batch:
    """Draw ``size`` sequences, half of them one long answer, half several direct turns.

    Parameters
    ----------
    objects, steps, turns
        Inclusive ranges of the objects in a picture, the steps of a long answer and the number of
        direct questions about one picture.
    loose_colors
        Where a colour is due, accept ``"any"`` colour word, or any that is ``"present"`` in the
        picture, so that wording is learnt and reading the right object is not.
    question_color
        Let the question's last word, too, learn to tell the colour it asks for (nothing is written
        there: the question row comes to read the picture as an answer does).
    """
    patches, palette = bank.draw_palette(rng)
    cells = torch.full((size, GRID**2), _EMPTY)
    accepted = torch.full((size, len(_COLORS)), loose_colors != "present")
    rows: list[list[Word]] = []
    for b in range(size):
        twins = bool(rng.random() < 0.5)
        scene = sample_scene(rng, int(rng.integers(objects[0], objects[1] + 1)), twins)
        for placed in scene.objects:
            cells[b, placed.cell] = template_of(placed.kind, placed.color)
            accepted[b, _COLORS.index(placed.color)] = True
        if rng.random() < 0.5:
            count = int(rng.integers(steps[0], steps[1] + 1))
            rows.append(_long_answer(rng, scene, count, question_color))
        else:
            count = int(rng.integers(turns[0], turns[1] + 1))
            rows.append(_dialogue(rng, scene, count, question_color))
    ids, labels, loose = _collate(rows, loose_colors is not None)
    return Batch(patches, palette, cells, ids, labels, loose, accepted)


def _turn(mode: str, target: Placed, question_color: bool) -> list[Word]:
    words = _given(*question_words(mode, target.kind), "<|im_end|>", "<|im_start|>", "assistant")
    if question_color:
        words[-3] = ("<|im_end|>", target.color)
    return words


def _long_answer(
    rng: np.random.Generator, scene: Scene, steps: int, question_color: bool
) -> list[Word]:
    target = scene.objects[0]
    words = chain(rng, scene, target.kind, steps) + reply(target.kind, target.color)
    asked = _turn("stepwise", target, question_color)
    return _given(*PREFIX) + asked + _learnt(*words, "<|im_end|>")


def _dialogue(
    rng: np.random.Generator, scene: Scene, turns: int, question_color: bool
) -> list[Word]:
    words = _given(*PREFIX)
    for turn in range(turns):
        if turn:
            words += _given("<|im_start|>", "user")
        target = scene.objects[int(rng.integers(len(scene.objects)))]
        words += _turn("directly", target, question_color)
        words += _learnt(*reply(target.kind, target.color), "<|im_end|>")
    return words


def _given(*words: str) -> list[Word]:
    return [(word, None) for word in words]


def _learnt(*words: str) -> list[Word]:
    return [(word, word) for word in words]


def _collate(
    rows: Sequence[Sequence[Word]], loose_colors: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), token("<|pad|>"))
    labels = torch.full((len(rows), longest), IGNORE)
    loose = torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor([token(word) for word, _ in row])
        for s, (_, wanted) in enumerate(row):
            if wanted is not None:
                labels[b, s] = token(wanted)
                loose[b, s] = loose_colors and wanted in COLORS
    return ids, labels, loose
