"""The gate of the operations: which heads are reweighted, and by how much."""

from __future__ import annotations

from typing import Literal, NamedTuple

GateKind = Literal["static", "dynamic"]


class Gate(NamedTuple):
    """Which heads are reweighted, and by how much; the keyword arguments of the operations.

    Attributes
    ----------
    gate : {"static", "dynamic"}
        ``"static"``: all of the operation's ``heads``. ``"dynamic"``: those of them whose attention
        on the image passes both thresholds at the query.
    focus_weight : float
        Weight of question-relevant image keys (no unit, ``>= 0``).
    image_weight : float
        Weight of the other image keys (no unit, ``>= 0``); text has weight 1.
    min_ratio : float
        Least ``R_img`` of the dynamic gate (no unit).
    entropy_factor : float
        Least ``R_img`` of the dynamic gate per nat of ``H_joint`` (1 / nat).

    Examples
    --------
    >>> Gate("static", focus_weight=2.0)._asdict()["focus_weight"]
    2.0
    """

    gate: GateKind = "dynamic"
    focus_weight: float = 1.5
    image_weight: float = 1.0
    min_ratio: float = 0.6
    entropy_factor: float = 0.2
