"""The ways in which people generate, each with a check that holds for every family.

Every other module of the package registers the modes of one kind by being imported.
"""

from __future__ import annotations

from tests.adapter.modes import caches, decoding, numerics, prompts  # in the table's order
from tests.adapter.modes.base import MODES, Mode, StockCannot, Subject, subject

__all__ = ["MODES", "Mode", "StockCannot", "Subject", "subject"]
