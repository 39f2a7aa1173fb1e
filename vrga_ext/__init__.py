"""Visual region-guided attention (VRGA) for stock transformers models."""

from vrga_ext.config import VRGAConfig

__all__ = ["VRGAConfig"]
