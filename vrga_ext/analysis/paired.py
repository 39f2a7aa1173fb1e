"""Paired comparisons of two runs on the same questions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vrga_ext._arguments import as_array

_EXACT = 1000  # most changed pairs with an exact binomial sum; above, its normal limit


class Paired(NamedTuple):
    """Two runs on the same questions; for right and wrong answers McNemar's comparison.

    Attributes
    ----------
    mean_difference : float
        Mean over the questions of the first run's value less the second one's, in their unit.
    standard_error : float
        Of ``mean_difference``, in the same unit; NaN for a single question.
    better : int
        Questions on which the first run is higher.
    worse : int
        Questions on which it is lower.
    questions : int
        Questions with a number in both runs.

    Examples
    --------
    >>> Paired(0.25, 0.1, better=9, worse=1, questions=32).p_value < 0.05
    True
    """

    mean_difference: float
    standard_error: float
    better: int
    worse: int
    questions: int

    @property
    def z(self) -> float:
        """``(better - worse) / sqrt(better + worse)``, 0 when nothing changed."""
        changed = self.better + self.worse
        return (self.better - self.worse) / math.sqrt(changed) if changed else 0.0

    @property
    def p_value(self) -> float:
        """Two-sided sign test: exact up to 1,000 changed questions, else its normal limit.

        Unchanged questions do not count, as in McNemar's test.
        """
        changed, least = self.better + self.worse, min(self.better, self.worse)
        if changed > _EXACT:
            return math.erfc(max(abs(self.better - self.worse) - 1, 0) / math.sqrt(2 * changed))
        tail = sum(math.comb(changed, k) for k in range(least + 1))
        return min(1.0, 2 * tail / 2**changed)


def compare(first: Any, second: Any) -> Paired:
    """Compare the first run with the second on the same questions.

    Parameters
    ----------
    first, second
        One number or bool per question: a sequence, an array or a tensor. A pair with a NaN does
        not count.

    Returns
    -------
    Paired

    Raises
    ------
    ValueError
        The lengths differ, or no pair of numbers is left.

    Examples
    --------
    >>> found = compare([True, True, True, False], [False, True, False, False])
    >>> found.mean_difference, found.better, found.worse, found.p_value
    (0.5, 2, 0, 0.5)
    """
    one, other = as_array(first).astype(float), as_array(second).astype(float)
    if one.ndim != 1 or one.shape != other.shape:
        raise ValueError(f"second: wanted one value per question {one.shape}, got {other.shape}")
    difference = (one - other)[~np.isnan(one - other)]
    count = len(difference)
    if not count:
        raise ValueError("first, second: wanted at least one pair of numbers, got none")
    spread = float(difference.std(ddof=1)) if count > 1 else math.nan
    return Paired(
        float(difference.mean()),
        spread / math.sqrt(count),
        int((difference > 0).sum()),
        int((difference < 0).sum()),
        count,
    )


def compare_styles(values: Mapping[str, Any]) -> dict[tuple[str, str], Paired]:
    """Compare every pair of prompt styles, the later one with the earlier one.

    The paper (section 3) compares RRAR under three styles and finds
    ``reason < direct < region-guided``.

    Parameters
    ----------
    values
        Style to one number per question, in the same order of questions.

    Returns
    -------
    dict of (str, str) to Paired
        By the earlier and the later style.

    Examples
    --------
    >>> styles = {"direct": [1.0, 2.0], "reason": [0.5, 1.0], "region_guided": [2.0, 2.5]}
    >>> compare_styles(styles)["direct", "reason"].mean_difference
    -0.75
    """
    return {
        (one, other): compare(values[other], values[one])
        for one, other in itertools.combinations(values, 2)
    }


def combined_score(accuracy: float, penalty: float, alpha: float) -> float:
    r"""Combined score :math:`S = A (1 - \alpha I)`.

    Parameters
    ----------
    accuracy, penalty
        A and I, both shares in [0, 1].
    alpha
        Weight of the penalty, in [0, 1].

    Raises
    ------
    ValueError
        One of them is out of range.

    Examples
    --------
    >>> combined_score(0.5, 0.5, 0.5)
    0.375
    """
    for name, value in (("accuracy", accuracy), ("penalty", penalty), ("alpha", alpha)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: wanted a number in [0, 1], got {value!r}")
    return accuracy * (1 - alpha * penalty)
