"""What the hooks of one model read while it runs, and where they publish what they find."""

from __future__ import annotations

import uuid
import warnings
from typing import Any

import torch

from vrga_ext._notices import VRGAWarning
from vrga_ext.config import VRGAConfig
from vrga_ext.integrations.transformers.observe.recorder import CaptureRecorder
from vrga_ext.integrations.transformers.sequence.state import RegionHook
from vrga_ext.region import Regions


class Runtime:
    """Settings, pauses, capture and notices of one handle.

    Attributes
    ----------
    key : str
        Of the handle's prompts and caches. It survives copies and pickles of the model, where a
        reference would copy the model.
    config : VRGAConfig
        Thresholds.
    question_end : str, int, or list of int
        Where the question ends in the next prompts.
    region_hook : callable, optional
        See :class:`VRGAHandle`.
    capture : CaptureRecorder, optional
        Records the forward calls.
    regions : Regions
        Of the last prompt.
    pauses : list of None
        One for each ``pause`` that is on; its append and pop are atomic, a counter's are not.
    noticed : dict from str to None
        The notices that were given, in order.
    """

    def __init__(self, config: VRGAConfig, question_end: str | int | list[int]) -> None:
        self.key = uuid.uuid4().hex
        self.config = config
        self.question_end = question_end
        self.region_hook: RegionHook | None = None
        self.capture: CaptureRecorder | None = None
        self.regions = Regions()
        self.pauses: list[None] = []
        self.noticed: dict[str, None] = {}
        self._reasons: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """A copy is neither paused nor captured: both end with a block."""
        return self.__dict__ | {"pauses": [], "capture": None}

    @torch.compiler.assume_constant_result  # warns while a call is compiled, not in its graph
    def notice(self, message: str, once_for: str = "") -> None:
        """Warn once: of a message, or of a reason that several messages may have."""
        if message not in self.noticed and (not once_for or once_for not in self._reasons):
            self.noticed[message] = None
            self._reasons.add(once_for)
            warnings.warn(message, VRGAWarning, stacklevel=2)
