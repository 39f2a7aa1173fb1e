"""Where the image tokens of a prompt lie in the picture that they show.

Processors stretch, pad, crop and tile pictures in many ways. :func:`token_geometry` runs the real
processor on pictures of ramps, and reads off which pixels each token is made of. Nothing here
depends on an engine or on the name of a model.
"""

from __future__ import annotations

from vrga_ext.geometry.find import token_geometry
from vrga_ext.geometry.tokens import TokenGeometry

__all__ = ["TokenGeometry", "token_geometry"]
