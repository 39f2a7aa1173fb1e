"""Numbers from captured attention: where heads look, how that drifts, and which heads matter.

Everything here works on a :class:`vrga_ext.Capture`, or on arrays; paper sections 3 and 5.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vrga_ext.analysis.ablation import Ablation, blinded, choose_heads
from vrga_ext.analysis.boxes import box_tokens, mask_tokens, relevant_tokens
from vrga_ext.analysis.heads import (
    Drift,
    LinearFit,
    drift,
    focused_heads,
    head_mask,
    linear_fit,
    rrar,
)
from vrga_ext.analysis.paired import Paired, combined_score, compare, compare_styles

__all__ = [
    "Ablation",
    "Drift",
    "LinearFit",
    "Paired",
    "ablate",
    "blinded",
    "box_tokens",
    "choose_heads",
    "combined_score",
    "compare",
    "compare_styles",
    "drift",
    "focused_heads",
    "head_mask",
    "linear_fit",
    "mask_heads",
    "mask_tokens",
    "relevant_tokens",
    "rrar",
]


def __getattr__(name: str) -> Any:  # what changes a model lives with its engine
    if name in ("ablate", "mask_heads"):
        return getattr(import_module("vrga_ext.integrations.transformers.ablation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
