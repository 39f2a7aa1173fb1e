"""The ways in which people generate, each with a check that holds for every family.

The modules register the modes of one kind by being imported, in the order of the README's table.
"""

from __future__ import annotations

import importlib

from tests.adapter.modes.base import MODES, Mode, StockCannot, Subject, subject

__all__ = ["MODES", "Mode", "StockCannot", "Subject", "subject"]

for module in ("decoding", "prompts", "caches", "numerics"):
    importlib.import_module(f"{__name__}.{module}")
