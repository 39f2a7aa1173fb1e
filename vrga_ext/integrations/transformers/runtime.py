"""What the hooks of one model read while it runs, and where they publish what they find."""

from __future__ import annotations

import uuid
import warnings
from typing import Any

import torch

from vrga_ext.config import VRGAConfig
from vrga_ext.integrations.transformers.observe.recorder import Recorder
from vrga_ext.integrations.transformers.sequence.state import RegionHook
from vrga_ext.prompts.question import normalise_question_end
from vrga_ext.region import Regions


class VRGAWarning(UserWarning):
    """VRGA cannot be applied as asked; the model runs as it would without it."""


class Runtime:
    """Settings, pauses, recorders and notices of one handle.

    Attributes
    ----------
    key : str
        Whose prompts and caches these are. It survives copies and pickles of the model, where a
        reference would copy the model.
    config : VRGAConfig
        Thresholds.
    region_hook : callable, optional
        See :class:`VRGAHandle`.
    recorders : list of Recorder
        What watches the forward calls.
    regions : Regions
        Of the last prompt.
    pauses : list of None
        One for each ``pause`` that is on; its append and pop are atomic, a counter's are not.
    noticed : dict from str to None
        What was said so far, in order.
    """

    def __init__(self, config: VRGAConfig, question_end: Any) -> None:
        self.key = uuid.uuid4().hex
        self.config = config
        self.question_end = question_end
        self.region_hook: RegionHook | None = None
        self.recorders: list[Recorder] = []
        self.regions = Regions()
        self.pauses: list[None] = []
        self.noticed: dict[str, None] = {}

    @property
    def question_end(self) -> str | int | list[int]:
        """Where the question ends in the next prompts."""
        return self._question_end

    @question_end.setter
    def question_end(self, value: Any) -> None:
        self._question_end = normalise_question_end(value)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is neither paused nor watched: both end with a block."""
        return self.__dict__ | {"pauses": [], "recorders": []}

    @torch.compiler.assume_constant_result  # said while a call is compiled, not in its graph
    def notice(self, message: str) -> None:
        """Warn of something, once."""
        if message not in self.noticed:
            self.noticed[message] = None
            warnings.warn(message, VRGAWarning, stacklevel=2)
