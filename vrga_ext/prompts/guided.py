"""Where a guide lies in a prompt: positions of its tokens, and when its phases hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vrga_ext.guide import Guide
from vrga_ext.prompts.pictures import PromptPictures
from vrga_ext.schedule import Timing


@dataclass(frozen=True, eq=False)
class Places:
    """A guide in one sample of a prompt.

    Attributes
    ----------
    positions : tuple of int64 [m], optional each
        Positions of the boosted tokens in each phase. None as the first one stands for what VRGA
        selects, as a later one for nothing.
    timing : Timing
        When the phases hold.
    inside : bool
        Whether the prompt has opened the guided part of the answer already.

    Examples
    --------
    >>> Places((torch.tensor([3]),), Timing(), True).is_timed
    False
    """

    positions: tuple[Tensor | None, ...]
    timing: Timing
    inside: bool

    @property
    def is_timed(self) -> bool:
        """Whether what is boosted changes during the answer."""
        return bool(self.timing.starts) or self.timing.between is not None


def find_places(guide: Guide, image: Tensor, ids: Tensor, pictures: PromptPictures) -> Places:
    """Find a guide in one sample.

    Parameters
    ----------
    guide
        Where the model should look.
    image : bool [S]
        Image tokens of the prompt, those that the cache holds included.
    ids : int64 [s]
        The last s tokens of the prompt: those that come with the call.
    pictures
        Those among them.

    Raises
    ------
    ValueError
        A token is no image token, the number of pictures is another one, or it is not known where
        their tokens lie.
    """
    phases = [guide, *(then for _, then in guide.schedule)]
    positions = tuple(
        None if phase is None or not phase.has_places else _positions(phase, image, pictures)
        for phase in phases
    )
    timing = Timing(tuple(start for start, _ in guide.schedule), guide.between)
    return Places(positions, timing, _is_open(guide.between, ids))


def _positions(guide: Guide, image: Tensor, pictures: PromptPictures) -> Tensor:
    chosen = torch.zeros_like(image)
    if guide.tokens is not None:
        for token in guide.tokens:
            if token >= len(image) or not image[token]:
                found = image.nonzero().flatten().tolist()
                known = (
                    f"between {found[0]} and {found[-1]}" if found else "of which there are none"
                )
                raise ValueError(f"tokens: wanted positions of image tokens, {known}, got {token}")
            chosen[token] = True
    if guide.has_pixels:
        chosen[pictures.tokens_of(guide)] = True
    return chosen.nonzero().flatten()


def _is_open(between: tuple[int, int] | None, ids: Tensor) -> bool:
    """Whether the last of the two tokens in a prompt is the first one, or none is asked for."""
    if between is None:
        return True
    last = [
        int((ids == token).nonzero().max()) if (ids == token).any() else -1 for token in between
    ]
    return last[0] > last[1]
