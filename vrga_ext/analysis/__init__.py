"""Numbers from captured attention: where heads look, how that drifts, and which heads matter.

Everything here works on a :class:`vrga_ext.Capture`, or on arrays; paper sections 3 and 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vrga_ext._lazy import lazy

if TYPE_CHECKING:
    from vrga_ext.analysis.ablation import Ablation, blinded, choose_heads
    from vrga_ext.analysis.boxes import relevant_tokens, token_levels
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
    from vrga_ext.analysis.profile import HeadProfile, head_profile

__all__ = [
    "Ablation",
    "Drift",
    "HeadProfile",
    "LinearFit",
    "Paired",
    "ablate",
    "blinded",
    "choose_heads",
    "combined_score",
    "compare",
    "compare_styles",
    "drift",
    "focused_heads",
    "head_mask",
    "head_profile",
    "linear_fit",
    "mask_heads",
    "relevant_tokens",
    "rrar",
    "token_levels",
]

# Imported when first used, so that arguments can be checked before torch is imported.
_NAMES = {
    **dict.fromkeys(("Ablation", "blinded", "choose_heads"), "vrga_ext.analysis.ablation"),
    # What changes a model lives with its engine.
    **dict.fromkeys(("ablate", "mask_heads"), "vrga_ext.integrations.transformers.ablation"),
    **dict.fromkeys(("relevant_tokens", "token_levels"), "vrga_ext.analysis.boxes"),
    **dict.fromkeys(
        ("Drift", "LinearFit", "drift", "focused_heads", "head_mask", "linear_fit", "rrar"),
        "vrga_ext.analysis.heads",
    ),
    **dict.fromkeys(
        ("Paired", "combined_score", "compare", "compare_styles"), "vrga_ext.analysis.paired"
    ),
    **dict.fromkeys(("HeadProfile", "head_profile"), "vrga_ext.analysis.profile"),
}
__getattr__, __dir__ = lazy(__name__, _NAMES)
