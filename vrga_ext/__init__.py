"""Visual region-guided attention (VRGA) for stock transformers models.

Most programs need ``enable(model)`` and ``disable(model)`` alone. Their first use imports
transformers, which the operations do not need.
"""

from __future__ import annotations

from importlib.metadata import version
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from vrga_ext._lazy import lazy
from vrga_ext.config import VRGAConfig

# Inside a clone, `import vrga_ext` finds this folder; the compiled operations of the installed
# package are then found beside it.
__path__ = extend_path(__path__, __name__)

if TYPE_CHECKING:
    from vrga_ext import (  # noqa: F401
        analysis,
        captures,
        gate,
        geometry,
        guide,
        ops,
        plan,
        reference,
        region,
        schedule,
        selection,
        settings,
        steering,
        viz,
    )
    from vrga_ext.build_facts import build_info
    from vrga_ext.captures import Capture
    from vrga_ext.guide import Guide
    from vrga_ext.integrations.transformers.api import (
        Region,
        VRGAHandle,
        VRGAWarning,
        disable,
        enable,
        regions_of,
    )
    from vrga_ext.integrations.transformers.observe.recording import Recording, capture

    __version__: str

__all__ = [
    "Capture",
    "Guide",
    "Recording",
    "Region",
    "VRGAConfig",
    "VRGAHandle",
    "VRGAWarning",
    "__version__",
    "build_info",
    "capture",
    "disable",
    "enable",
    "regions_of",
]

_NAMES = {
    **dict.fromkeys(
        ("Region", "VRGAHandle", "VRGAWarning", "disable", "enable", "regions_of"),
        "vrga_ext.integrations.transformers.api",
    ),
    **dict.fromkeys(
        ("Recording", "capture"), "vrga_ext.integrations.transformers.observe.recording"
    ),
    "Capture": "vrga_ext.captures",
    "Guide": "vrga_ext.guide",
    "build_info": "vrga_ext.build_facts",
}
_SUBMODULES = (
    "analysis", "captures", "gate", "geometry", "guide", "integrations", "ops", "plan", "prompts",
    "reference", "region", "schedule", "selection", "settings", "steering", "viz",
)  # fmt: skip
_get, __dir__ = lazy(__name__, _NAMES, _SUBMODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":  # not at import: a clone that was never installed has none
        return globals().setdefault(name, version("vrga_ext"))
    return _get(name)
