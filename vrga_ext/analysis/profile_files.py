"""Head profiles as JSON files: reading checks every field, since anyone may have written the file.

A mean that is NaN is stored as null.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vrga_ext._stored import (
    InvalidFileError,
    check_names,
    checked_int,
    checked_layers,
    checked_list,
    checked_model,
    checked_weight,
    fail,
    parsed_object,
)
from vrga_ext.files import write_whole

_KEY, _FORMAT = "vrga_head_profile", 1
_NAMES = ("layers", "prompts", "selected", "mean_efr", "mean_rrar", "model")


def write_profile(profile: Any, path: Path) -> None:
    """Write the fields of a head profile to a file.

    Parameters
    ----------
    profile : vrga_ext.analysis.HeadProfile
        Not imported here: ``profile`` imports this module.
    path
        The file.

    Raises
    ------
    OSError
        As :meth:`vrga_ext.analysis.HeadProfile.save`.
    """
    content = {
        _KEY: _FORMAT,
        "layers": profile.layers,
        "prompts": profile.prompts,
        "selected": profile.selected.tolist(),
        "mean_efr": _without_nan(profile.mean_efr),
        "mean_rrar": None if profile.mean_rrar is None else _without_nan(profile.mean_rrar),
        "model": None if profile.model is None else asdict(profile.model),
    }
    write_whole(path, (json.dumps(content, allow_nan=False) + "\n").encode())


def read_profile(path: Path) -> dict[str, Any]:
    """Read the fields of a head profile, by name, from a file.

    Raises
    ------
    FileNotFoundError, ValueError
        As :meth:`vrga_ext.analysis.HeadProfile.load`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: wanted a file written by HeadProfile.save, got {path}")
    try:
        return _fields(parsed_object("content", path.read_text(encoding="utf-8")))
    except (InvalidFileError, UnicodeDecodeError) as error:
        raise ValueError(
            f"path: wanted a file written by HeadProfile.save, got {path} ({error})"
        ) from error


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    if content.pop(_KEY, None) != _FORMAT:
        raise InvalidFileError(f"{_KEY}: wanted format {_FORMAT}, got another or none")
    check_names("content", content, _NAMES)
    layers = checked_layers("layers", content["layers"])
    prompts = checked_int("prompts", content["prompts"], 1)
    selected = checked_list("selected", content["selected"], len(layers))
    heads = len(checked_list("selected", selected[0]))
    if not heads:
        fail("selected", "at least one head", selected)
    counts = [
        [checked_int("selected", value, 0, prompts) for value in row]
        for row in _rows("selected", selected, len(layers), heads)
    ]
    return {
        "layers": layers,
        "prompts": prompts,
        "selected": torch.tensor(counts, dtype=torch.int64, device="cpu"),
        "mean_efr": _means("mean_efr", content["mean_efr"], len(layers), heads),
        "mean_rrar": (
            None
            if content["mean_rrar"] is None
            else _means("mean_rrar", content["mean_rrar"], len(layers), heads)
        ),
        "model": checked_model("model", content["model"]),
    }


def _rows(name: str, value: Any, layers: int, heads: int) -> list[list[Any]]:
    return [checked_list(name, row, heads) for row in checked_list(name, value, layers)]


def _means(name: str, value: Any, layers: int, heads: int) -> Tensor:
    means = [
        [math.nan if mean is None else checked_weight(name, mean) for mean in row]
        for row in _rows(name, value, layers, heads)
    ]
    return torch.tensor(means, dtype=torch.float64, device="cpu")


def _without_nan(means: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(mean) else mean for mean in row] for row in means.tolist()]
