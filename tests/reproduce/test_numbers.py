"""What a report computes and prints without a study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vrga_ext.demo.answers import MODEL_PATH
from vrga_ext.reproduce import run
from vrga_ext.reproduce.findings import rank_correlation
from vrga_ext.reproduce.measure import Mean


def test_equal_numbers_share_their_rank():
    ones = np.array([0.0, 0, 0, 0, 1])
    assert rank_correlation(ones, -ones) == pytest.approx(-1)
    assert np.isnan(rank_correlation(ones, np.zeros(5)))
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: by hand, 4.5 / sqrt(4.5 * 5).
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.arange(4.0)) == pytest.approx(0.9486833)


def test_one_value_has_no_error():
    assert np.isnan(Mean.from_values(np.array([3.0, np.nan])).error)
    assert Mean.from_values(np.array([1.0, 0.0])) == (0.5, pytest.approx(0.5))


def test_the_error_of_a_mean_is_not_too_small():
    """Of few values as well: its square is right on average."""
    draws = np.random.default_rng(0).normal(size=(20_000, 3))
    errors = np.array([Mean.from_values(values).error for values in draws])
    assert np.mean(errors**2) == pytest.approx(1 / 3, rel=0.03)


def test_printed_commands_name_no_model_that_cannot_be_given():
    shipped, seed1, seed2 = str(MODEL_PATH), "models/seed1", "models/seed2"
    plain = "python -m vrga_ext reproduce --samples 4 --output FOLDER"
    named = "python -m vrga_ext reproduce --model seed1 --model seed2 --samples 4 --output FOLDER"
    assert run._commands([shipped], None, 4, 9) == [plain]
    assert run._commands([seed1, seed2], None, 4, 9) == [named]
    assert run._commands([shipped, seed1, seed2], None, 4, 9) == [plain, named]
    (asked,) = run._commands([shipped, seed1], Path("data/boxes"), 4, 9)
    assert " --model model --model seed1 --data boxes --max-new-tokens 9 " in asked
