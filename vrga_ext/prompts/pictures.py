"""The pictures of a prompt: which image tokens are of which, and where each of them lies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vrga_ext.geometry import TokenGeometry, token_geometry
from vrga_ext.guide import Guide

Size = tuple[int, int]


class PictureReader:
    """Tells where the image tokens of pictures lie, for one processor.

    Parameters
    ----------
    processor
        The model's processor, or its image processor; None where it is not known.
    config
        The model's configuration.
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self._processor, self._config = processor, config

    def __deepcopy__(self, memo: dict[int, Any]) -> PictureReader:
        return self  # nothing of it changes

    @property
    def knows_processor(self) -> bool:
        """Whether there is a processor of images to ask."""
        processor = getattr(self._processor, "image_processor", self._processor)
        return callable(processor) and hasattr(processor, "preprocess")

    def geometry(self, size: Size, tokens: int) -> TokenGeometry | None:
        """Where the tokens of a picture of (width, height) pixels lie; None if it is not known."""
        return token_geometry(self._processor, size, tokens, config=self._config)


class PromptPictures:
    """The pictures among the image tokens of one sample that come with a call.

    Parameters
    ----------
    reader
        Of the model.
    positions : int64 [n]
        Positions of the tokens of pictures in the prompt, ascending.
    counts : sequence of int, optional
        Tokens of each picture, where the call tells them.
    """

    def __init__(
        self, reader: PictureReader, positions: Tensor, counts: Sequence[int] | None
    ) -> None:
        self._reader, self._positions, self._counts = reader, positions, counts

    def tokens_of(self, guide: Guide) -> Tensor:
        """Positions of the tokens in a guide's boxes, masks and points, int64 [m].

        Raises
        ------
        ValueError
            The prompt has other pictures, it is not known where their tokens lie, or a picture's
            places hold no token.
        """
        geometries = self._geometries(guide.image_sizes)
        chosen, first = [], 0
        for picture, geometry in enumerate(geometries):
            found = _chosen(guide, picture, geometry)
            chosen.append(self._positions[first + torch.from_numpy(found)])
            first += len(geometry)
        return torch.cat(chosen)

    def _geometries(self, sizes: Sequence[Size]) -> list[TokenGeometry]:
        """Where the tokens of each picture lie."""
        if not self._reader.knows_processor:
            raise ValueError(
                "guide: wanted a processor that tells where image tokens lie, got none; pass "
                "processor= to enable(), or tokens="
            )
        total = len(self._positions)
        if self._counts is not None and len(self._counts) != len(sizes):
            raise ValueError(
                f"image_sizes: wanted those of the sample's {len(self._counts)} pictures, got "
                f"{len(sizes)}"
            )
        if total < len(sizes):
            raise ValueError(
                f"image_sizes: wanted those of the sample's pictures, which have {total} tokens, "
                f"got {len(sizes)}"
            )
        divisions = list(itertools.islice(self._divided(tuple(sizes), 0), 2))
        if len(divisions) != 1:
            why = "no way" if not divisions else "more than one way"
            raise ValueError(
                f"image_sizes: wanted pictures whose tokens can be placed, got {list(sizes)}: "
                f"there is {why} to divide {total} image tokens among them; pass tokens="
            )
        return divisions[0]

    def _divided(self, sizes: tuple[Size, ...], first: int) -> Iterator[list[TokenGeometry]]:
        """Every way to give each picture a number of tokens that its processor makes of it."""
        if not sizes:
            if first == len(self._positions):
                yield []
            return
        for count in self._candidates(len(sizes), first):
            geometry = self._reader.geometry(sizes[0], count)
            if geometry is None:
                continue
            for rest in self._divided(sizes[1:], first + count):
                yield [geometry, *rest]

    def _candidates(self, pictures: int, first: int) -> list[int]:
        """Numbers of tokens that the next picture may have: it ends where a run ends."""
        if self._counts is not None:
            return [self._counts[len(self._counts) - pictures]]
        left = len(self._positions) - first
        if pictures == 1:
            return [left]
        gaps = (torch.diff(self._positions[first:]) > 1).nonzero().flatten() + 1
        ends: list[int] = gaps.tolist()
        if len(ends) + 1 == pictures:  # a run each
            return ends[:1]
        same = [left // pictures] if left % pictures == 0 else []  # runs that touch
        return sorted({*ends[: len(ends) + 2 - pictures], *same})


def _chosen(guide: Guide, picture: int, geometry: TokenGeometry) -> np.ndarray:
    """Indices of a picture's tokens in a guide's places, int64 [k]."""
    share = guide.min_coverage
    found = np.zeros(len(geometry), dtype=bool)
    places = 0
    if guide.boxes is not None:
        for box in guide.boxes[picture]:
            found[geometry.box_tokens([box], min_coverage=share)] = True
        places += len(guide.boxes[picture])
    if guide.points is not None and guide.points[picture]:
        found[geometry.point_tokens(guide.points[picture])] = True
        places += len(guide.points[picture])
    if guide.masks is not None and guide.masks[picture] is not None:
        found[geometry.mask_tokens(guide.masks[picture], min_coverage=share)] = True
        places += 1
    if places and not found.any():
        raise ValueError(
            f"guide: wanted places in what the model sees of picture {picture}, got some that no "
            "image token shows"
        )
    return np.flatnonzero(found)
