"""The warning that says what VRGA does not do."""

from __future__ import annotations


class VRGAWarning(UserWarning):
    """VRGA cannot be applied as asked; the model runs as it would without it."""
