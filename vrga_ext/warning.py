"""The warning of the whole package."""

from __future__ import annotations


class VRGAWarning(UserWarning):
    """VRGA cannot be applied as asked and leaves the model as it is, or may not fit the model."""
