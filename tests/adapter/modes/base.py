"""What the modes have in common: the registry, and one tiny model per family that they share.

A mode is a way in which people generate. Its check takes a :class:`Subject` and holds three things:
with ``gamma=0`` the result is bit for bit the one of the model that VRGA is not enabled in; with
``gamma>0`` it equals the plain greedy loop with the same ``gamma`` (where the tokens differ by
design, along the same tokens); and that loop differs from the one without VRGA.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vrga_ext
from tests.adapter.families import LOOSE, Family, Video, build, greedy, logits
from tests.adapter.families.base import Item
from vrga_ext import Region, VRGAHandle, VRGAWarning

Rows = tuple[tuple[Item, ...], ...]  # a prompt: its rows of token ids, images and videos

TESTS = Path(__file__).parents[2]
NEW = 4  # generated tokens: one from the prefill, three from decode steps
GAMMA = LOOSE["gamma"]
IMAGE_SIZE = (4, 4)
CLIP = Video(2, 2, 2)
ONE: Rows = ((5, 6, IMAGE_SIZE, 7, 8, 9, 10),)
# Different lengths, so that two rows are padded, and images in different columns.
MIXED: Rows = (*ONE, (11, IMAGE_SIZE, 12, 13, 14), (5, 6, 7, IMAGE_SIZE, 8, 9, 10, 11, 12))


class StockCannot(Exception):
    """Transformers itself, without VRGA, does not generate in this way with this family."""


RAISES = "transformers itself raises an error"
DIFFERS = "transformers' own result, without VRGA, is not the one of its greedy loop"


@dataclass(frozen=True)
class Run:
    """One generation."""

    tokens: Tensor  # int64 [B, NEW]
    logits: Tensor  # [NEW, B, vocabulary]
    regions: tuple[Region, ...]


@dataclass
class Subject:
    """The tiny model of a family, and the plain greedy loops that were generated with it."""

    family: Family
    _prompts: dict[Rows, dict[str, Tensor]] = field(default_factory=dict)
    _loops: dict[Any, Run] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        return self.family.model

    def prompt(self, rows: Rows) -> dict[str, Tensor]:
        """Inputs of a prompt; equal rows have equal pictures, in whichever prompt they stand."""
        if rows not in self._prompts:
            self._prompts[rows] = joined(self.family, rows)
        return dict(self._prompts[rows])

    @contextlib.contextmanager
    def enabled(
        self, gamma: float | None, question_end: int, model: Any = None, **config: Any
    ) -> Iterator[VRGAHandle | None]:
        """VRGA in the model, where a warning is an error; ``gamma=None`` leaves it out."""
        if gamma is None:
            yield None
            return
        model = self.model if model is None else model
        config = LOOSE | {"gamma": gamma, "question_end": question_end} | config
        with warnings.catch_warnings(), vrga_ext.enable(model, **config) as handle:
            warnings.simplefilter("error", VRGAWarning)
            yield handle

    def run(
        self,
        rows: Rows,
        gamma: float | None,
        *,
        model: Any = None,
        config: dict[str, Any] | None = None,
        **how: Any,
    ) -> Run:
        """Generate greedily, or as ``how`` says; the plain loop once for all modes."""
        key, is_loop = (rows, gamma), not how and model is None and config is None
        if is_loop and key in self._loops:
            return self._loops[key]
        inputs = self.prompt(rows)
        width = inputs["input_ids"].shape[1]
        guard = without_vrga() if gamma is None else contextlib.nullcontext()
        with guard, self.enabled(gamma, width - 1, model, **config or {}) as handle:
            output = greedy(self.model if model is None else model, inputs, NEW, **how)
        regions = () if handle is None else tuple(handle.regions)
        run = Run(output.sequences[:, width:], logits(output), regions)
        if is_loop:
            self._loops[key] = run
        return run

    def twin(self) -> Any:
        """A copy of the model with the same weights."""
        return copy.deepcopy(self.model)


Check = Callable[[Subject], None]


@dataclass(frozen=True)
class Mode:
    """A way of generating.

    Attributes
    ----------
    column
        Column of the README's table that the mode belongs to.
    needs
        Media that a family must take.
    """

    name: str
    meaning: str
    column: str
    needs: frozenset[str]
    check: Check

    def does_not_apply(self, media: Iterable[str]) -> str | None:
        """Why a family that takes ``media`` has no such mode, or None."""
        missing = self.needs - set(media)
        return f"the family takes no {' and '.join(sorted(missing))}" if missing else None


MODES: dict[str, Mode] = {}


def mode(
    name: str, meaning: str, *, column: str, needs: Iterable[str] = ("image",)
) -> Callable[[Check], Check]:
    """Register a check."""

    def register(check: Check) -> Check:
        MODES[name] = Mode(name, meaning, column, frozenset(needs), check)
        return check

    return register


@functools.cache
def subject(name: str) -> Subject:
    """The one tiny model of a family that all modes share."""
    return Subject(build(name))


def joined(family: Family, rows: Rows) -> dict[str, Tensor]:
    """Inputs of a prompt whose pictures are those of its rows' own prompts."""
    if len(rows) == 1:
        return family.prompt(*rows, seed=zlib.crc32(repr(rows).encode()))
    inputs = family.prompt(*rows)
    alone = [joined(family, (row,)) for row in rows]
    for name, tensor in inputs.items():
        if tensor.is_floating_point():
            inputs[name] = filled(tensor, [single[name] for single in alone if name in single])
    return inputs


def filled(tensor: Tensor, parts: list[Tensor]) -> Tensor:
    """The shape of ``tensor``, with its parts one after the other and zeros elsewhere.

    They follow each other in the dimension whose sizes add up, or else in the first.
    """
    whole = torch.zeros_like(tensor)
    sizes = [sum(part.shape[dim] for part in parts) for dim in range(tensor.dim())]
    along = next((dim for dim, size in enumerate(sizes) if size == tensor.shape[dim]), 0)
    first = 0
    for part in parts:
        where = [slice(size) for size in part.shape]
        where[along] = slice(first, first + part.shape[along])
        whole[tuple(where)] = part
        first += part.shape[along]
    return whole


@contextlib.contextmanager
def without_vrga() -> Iterator[None]:
    """Around a generation in which VRGA has no part.

    Raises
    ------
    StockCannot
        Transformers raises an error. An error of the tests themselves stays what it is.
    """
    try:
        yield
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, StockCannot) or Path(innermost).is_relative_to(TESTS):
            raise
        raise StockCannot(RAISES) from error


def stock(reference: Tensor, generate: Callable[[], Tensor], rtol: float = 1e-4) -> Tensor:
    """Logits of a generation without VRGA; they must equal those of transformers' greedy loop.

    Raises
    ------
    StockCannot
        They do not, or transformers raises an error.
    """
    with without_vrga():
        ours = generate()
    if ours.shape != reference.shape or not torch.allclose(ours, reference, atol=1e-4, rtol=rtol):
        raise StockCannot(DIFFERS)
    return ours


def assert_close(ours: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Logits of two computations of the same thing."""
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


def assert_boosted(boosted: Tensor, plain: Tensor, rows: Iterable[int] | None = None) -> None:
    """The prompt's end is as it was, and what follows is not, in each row."""
    rows = range(plain.shape[1]) if rows is None else rows
    assert torch.equal(boosted[0], plain[0])
    for row in rows:
        assert (boosted[1:, row] - plain[1:, row]).abs().max() > 1e-3, f"row {row} is not boosted"


def assert_same_regions(ours: Iterable[Region], expected: Iterable[Region]) -> None:
    """The same heads and tokens, and there are some."""
    for region, other in zip(ours, expected, strict=True):
        assert region.visual_heads == other.visual_heads != ()
        assert torch.equal(region.boosted, other.boosted)
        assert len(region.boosted)


def assert_equals_the_loop(subject: Subject, rows: Rows, **how: Any) -> None:
    """Generating as ``how`` says is the greedy loop, without VRGA, with gamma 0 and above."""
    plain = stock(subject.run(rows, None).logits, lambda: subject.run(rows, None, **how).logits)
    assert torch.equal(subject.run(rows, 0.0, **how).logits, plain)
    loop, ours = subject.run(rows, GAMMA), subject.run(rows, GAMMA, **how)
    assert torch.equal(ours.tokens, loop.tokens)
    assert_close(ours.logits, loop.logits)
    assert_same_regions(ours.regions, loop.regions)
    assert_boosted(loop.logits, subject.run(rows, None).logits)


@contextlib.contextmanager
def forward_calls(model: Any) -> Iterator[list[int]]:
    """A list that grows with every forward call of the model."""
    calls: list[int] = []
    hook = model.register_forward_hook(lambda *_: calls.append(len(calls)))
    try:
        yield calls
    finally:
        hook.remove()


class Follow:
    """A logits processor that generates given tokens, so that two runs can be compared."""

    def __init__(self, tokens: Tensor, width: int) -> None:
        self.tokens, self.width = tokens, width

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        step = min(ids.shape[1] - self.width, self.tokens.shape[1] - 1)  # past the end: not used
        next_token = self.tokens[:, step, None]
        return torch.full_like(scores, -1e9).scatter(1, next_token, 0.0)
