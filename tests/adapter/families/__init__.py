"""Tiny random models of real transformers architectures, and prompts for them; no download.

Every other module of the package registers the families of one group by being imported.
"""

from __future__ import annotations

import importlib
import pkgutil

from tests.adapter.families.base import (
    CACHE,
    FAMILIES,
    IMAGE,
    LOOSE,
    ROWS,
    VIDEO,
    VISION_END,
    VISION_START,
    Family,
    Video,
    build,
    greedy,
    greedy_or_skip,
    logits,
)

__all__ = [
    "CACHE",
    "CORE",
    "FAMILIES",
    "IMAGE",
    "LOOSE",
    "ROWS",
    "VIDEO",
    "VISION_END",
    "VISION_START",
    "Family",
    "Video",
    "build",
    "greedy",
    "greedy_or_skip",
    "logits",
]

# What every test of the adapter runs on; tests/adapter/test_families.py runs on all of them.
CORE = ("qwen2_vl", "qwen2_5_vl", "llava")

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
