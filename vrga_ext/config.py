"""Thresholds of VRGA: every number of the method has a name, a default, a unit and a range."""

from __future__ import annotations

import functools
import math
import numbers
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from vrga_ext.gate import Gate, GateKind

ImageSpan = Literal["tokens", "vision_span"]
Neighbourhood = Literal["grid", "flat"]
RatioKeys = Literal["attended", "prompt"]

# name -> (lowest, highest)
_RANGES: dict[str, tuple[float, float]] = {
    "gamma": (0.0, 1e4),
    "suppress": (0.0, 1.0),
    "efr_percentile": (0.0, 100.0),
    "ratio_percentile": (0.0, 100.0),
    "background_max_ratio": (0.0, math.inf),
    "background_first_heads": (0, math.inf),
    "background_weight": (0.0, math.inf),
    "focus_std": (-math.inf, math.inf),
    "focus_min_tokens": (1, math.inf),
    "border_max_share": (0.0, 1.0),
    "skip_leading_tokens": (0, math.inf),
    "widen": (0, math.inf),
    "min_ratio": (0.0, math.inf),
    "entropy_factor": (0.0, math.inf),
    "question_offset": (0, math.inf),
    "epsilon": (0.0, 1.0),
}


@dataclass(frozen=True)
class VRGAConfig:
    r"""Thresholds of visual region-guided attention (VRGA).

    The defaults follow the paper's text (static gate, image tokens only, the question's last token)
    and add three steps of the released code, which keep the region sound on large images: border
    sinks are suppressed, at least ten tokens are kept, and the region is widened, here in two
    dimensions. :meth:`paper` is the text alone; :meth:`released` reproduces the authors' code.

    The default gate is static. It boosts the heads that were selected in the prompt, which can be
    inspected before a token is generated, and layers without a visual head run the model's own
    attention, bit for bit.

    Parameters
    ----------
    gamma : float
        Boost :math:`\gamma \ge 0`: attention of gated heads on :math:`T_q` is multiplied by
        ``1 + gamma`` and renormalised over all keys. ``0`` leaves the model as it is. No unit.
    suppress : float
        Weight of the image tokens outside :math:`T_q` in gated heads, before all keys are
        renormalised, ``[0, 1]``. ``1`` leaves them as they are, ``0`` hides them. No unit.
    gate : {"static", "dynamic"}
        ``"static"``: the visual heads found at the prefill. ``"dynamic"``: any head whose
        statistics at the generated token satisfy ``R_img > min_ratio`` and
        ``R_img > entropy_factor * H_joint``.
    efr_percentile, ratio_percentile : float
        A visual head has ``EFR`` at or below the first and ``R_img`` at or above the second
        percentile over all layers and heads, in percent, ``[0, 100]``.
    background_max_ratio : float
        A background head has ``R_img`` below this (no unit, ``>= 0``) ...
    background_first_heads : int
        ... and is among this many first heads in layer-major order (heads, ``>= 0``).
    background_weight : float
        :math:`\lambda \ge 0`, the weight of the background heads' map in the refined map.
    focus_std : float
        Tokens are kept where the refined map exceeds ``mean + focus_std * std`` of the tokens that
        are not suppressed (standard deviations).
    focus_min_tokens : int
        At least this many tokens (``>= 1``) are kept, the largest ones.
    border_suppression : bool
        Leave the image's top-left corner, top grid row and left grid column, where attention sinks
        sit, out of the region. Images without a known patch grid lose nothing.
    border_max_share : float
        At most this share of the image tokens is suppressed, ``[0, 1]``.
    image_span : {"tokens", "vision_span"}
        ``"tokens"``: image tokens only. ``"vision_span"``: the token before the image is counted
        with it, as the released code does.
    skip_leading_tokens : int
        Kept tokens whose index within the image is below this are not boosted (tokens, ``>= 0``).
    widen : int
        Radius by which the kept tokens are widened before the boost (tokens, ``>= 0``).
    neighbourhood : {"grid", "flat"}
        ``"grid"``: the radius is two-dimensional where the patch grid is known, flat elsewhere.
        ``"flat"``: always along the sequence.
    min_ratio, entropy_factor : float
        The two thresholds of the dynamic gate (no unit, and per nat; ``>= 0``).
    question_offset : int
        Distance of the token whose attention is read to the question's last token (tokens,
        ``>= 0``), where the chat template tells the latter; an explicit ``question_end`` is not
        shifted.
    ratio_keys : {"attended", "prompt"}
        Keys of the mean in the denominator of ``R_img`` when heads are selected: ``"attended"``,
        those to which the question's token attends, or ``"prompt"``, all tokens of the prompt, as
        in the released code.
    epsilon : float
        Added to the sums and inside the logarithm when heads are selected (no unit, ``[0, 1]``);
        0 is exact, the released code has 1e-12.

    Raises
    ------
    ValueError
        A value is out of its range or not one of the listed choices.
    TypeError
        A value has the wrong type.

    Examples
    --------
    >>> VRGAConfig(gamma=1.0).focus_weight
    2.0
    >>> VRGAConfig(gamma=-1)
    Traceback (most recent call last):
    ...
    ValueError: gamma: wanted a number in [0, 10000], got -1
    """

    gamma: float = 0.5
    suppress: float = 1.0
    gate: GateKind = "static"
    efr_percentile: float = 5.0
    ratio_percentile: float = 95.0
    background_max_ratio: float = 0.01
    background_first_heads: int = 63
    background_weight: float = 1.0
    focus_std: float = 0.6
    focus_min_tokens: int = 10
    border_suppression: bool = True
    border_max_share: float = 0.2
    image_span: ImageSpan = "tokens"
    skip_leading_tokens: int = 0
    widen: int = 1
    neighbourhood: Neighbourhood = "grid"
    min_ratio: float = 0.6
    entropy_factor: float = 0.2
    question_offset: int = 0
    ratio_keys: RatioKeys = "attended"
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            name, value, wanted = field.name, getattr(self, field.name), hints[field.name]
            choices = get_args(wanted)
            if choices:
                if value not in choices:
                    raise ValueError(f"{name}: wanted one of {list(choices)}, got {value!r}")
            elif wanted is bool:
                if not isinstance(value, bool):
                    raise TypeError(f"{name}: wanted a bool, got {value!r}")
            else:
                object.__setattr__(self, name, wanted(_checked_number(name, value, wanted)))

    @classmethod
    def paper(cls, **overrides: Any) -> VRGAConfig:
        """The paper's text (section 4) alone: no border suppression, no minimum, no widening."""
        paper = {"border_suppression": False, "focus_min_tokens": 1, "widen": 0}
        return cls().replace(**paper | overrides)

    @classmethod
    def released(cls, **overrides: Any) -> VRGAConfig:
        """The authors' released code: dynamic gate, flat widening, image with its start token.

        One defect is repaired: the threshold's statistics are those of the unsuppressed tokens.
        """
        released: dict[str, Any] = {
            "gate": "dynamic",
            "image_span": "vision_span",
            "skip_leading_tokens": 3,
            "widen": 2,
            "neighbourhood": "flat",
            "question_offset": 1,
            "ratio_keys": "prompt",
            "epsilon": 1e-12,
        }
        return cls().replace(**released | overrides)

    def replace(self, **overrides: Any) -> VRGAConfig:
        """A copy with some fields changed; an unknown name raises ``TypeError``."""
        names = [field.name for field in fields(self)]
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no such field of VRGAConfig; fields: {names}")
        return replace(self, **overrides)

    @property
    def focus_weight(self) -> float:
        r"""Weight :math:`\alpha` of a key in :math:`T_q` for a gated head."""
        return 1.0 + self.gamma

    @functools.cached_property
    def head_gate(self) -> Gate:
        """The gate of the operations."""
        return Gate(
            self.gate, self.focus_weight, self.suppress, self.min_ratio, self.entropy_factor
        )

    @property
    def is_identity(self) -> bool:
        """Whether every weight is 1, so that the model's own attention may run."""
        return self.focus_weight == 1.0 and self.suppress == 1.0


def _checked_number(name: str, value: Any, wanted: type) -> Any:
    # numpy scalars are numbers too
    integral, real = isinstance(value, numbers.Integral), isinstance(value, numbers.Real)
    if isinstance(value, bool) or not (integral if wanted is int else real):
        raise TypeError(
            f"{name}: wanted {'an integer' if wanted is int else 'a number'}, got {value!r}"
        )
    low, high = _RANGES[name]
    if not low <= float(value) <= high or math.isinf(float(value)):
        raise ValueError(f"{name}: wanted {_range_in_words(low, high)}, got {value!r}")
    return value


def _range_in_words(low: float, high: float) -> str:
    if high < math.inf:
        return f"a number in [{low:g}, {high:g}]"
    return "a finite number" if low == -math.inf else f"a finite number >= {low:g}"
