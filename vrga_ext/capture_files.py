"""Captures as safetensors files: the fields of a capture to a file, and back with every check.

A file stores a tensor under the name of its field, one of the n-th region behind ``regions.n.``;
everything else is JSON in the metadata ``vrga_capture``. Reading checks every field, since anyone
may have written the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from vrga_ext._stored import (
    LARGEST,
    InvalidFileError,
    check_names,
    checked_heads,
    checked_int,
    checked_layers,
    checked_list,
    checked_model,
    checked_spans,
    checked_weight,
    fail,
    parsed_object,
)
from vrga_ext.files import write_whole
from vrga_ext.region import Region, Rule

_KEY, _FORMAT = "vrga_capture", 2
_PLAIN = ("layers", "prompt_rows", "copies", "focus_weight", "image_weight", "images", "regions")
_PLAIN_OF_REGION = (
    "question_end", "question_rule", "images", "layers", "visual_heads", "background_heads",
)  # fmt: skip

# Field -> dtype and axes. An axis gets its size from the first tensor that has it, so that the
# order matters; see Capture for the letters.
_Layout = Mapping[str, tuple[torch.dtype, str]]
_HEADS = "S L H R"
_TENSORS: _Layout = {
    "positions": (torch.int64, "S R"),
    "token_ids": (torch.int64, "S R"),
    "attended": (torch.int64, "S R"),
    "image_keys": (torch.int64, "S R"),
    "image_ratio": (torch.float32, _HEADS),
    "image_entropy": (torch.float32, _HEADS),
    "joint_entropy": (torch.float32, _HEADS),
    "gate": (torch.bool, _HEADS),
    "image_positions": (torch.int64, "S n"),
    "boosted": (torch.bool, "S R n"),
}
_OPTIONAL: _Layout = {
    "columns": (torch.int64, "S C"),
    "rows": (torch.float32, f"{_HEADS} C"),
}
_OF_REGION: _Layout = {
    "image_positions": (torch.int64, "m"),
    "image_ratio": (torch.float64, "L H"),
    "image_entropy": (torch.float64, "L H"),
    "efr": (torch.float64, "L H"),
    "refined_map": (torch.float64, "m"),
    "focus": (torch.int64, "f"),
    "boosted": (torch.int64, "b"),
}


def write_capture(capture: Any, path: Path) -> None:
    """Write the fields of a capture to a file.

    Parameters
    ----------
    capture : vrga_ext.Capture
        Not imported here: ``captures`` imports this module.
    path
        The file.

    Raises
    ------
    OSError
        As :meth:`vrga_ext.Capture.save`.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    about = _split(capture, "", tensors)
    about["regions"] = [
        _split(region, f"regions.{index}.", tensors) for index, region in enumerate(capture.regions)
    ]
    about["model"] = None if capture.model is None else asdict(capture.model)
    write_whole(path, save(tensors, {_KEY: json.dumps({"format": _FORMAT} | about)}))


def read_capture(path: Path) -> dict[str, Any]:
    """Read the fields of a capture, by name, from a file.

    Raises
    ------
    FileNotFoundError, ValueError
        As :meth:`vrga_ext.Capture.load`.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"path: wanted a file written by Capture.save, got {path}")
    path.open("rb").close()  # a file without read permission raises PermissionError
    try:
        with safe_open(path, framework="pt") as file:
            about = _metadata(file.metadata())
            return _fields(file, about)
    except (InvalidFileError, SafetensorError) as error:
        raise ValueError(
            f"path: wanted a file written by Capture.save, got {path} ({error})"
        ) from error


def _split(record: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put the tensors of a dataclass among ``tensors``; returns its other fields."""
    plain = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            tensors[prefix + field.name] = value.clone(memory_format=torch.contiguous_format)
        else:
            plain[field.name] = value
    return plain


# ---- reading -------------------------------------------------------------------------------------


def _metadata(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if metadata is None or _KEY not in metadata:
        raise InvalidFileError(f"wanted metadata {_KEY}, got none")
    about = parsed_object(_KEY, metadata[_KEY])
    if about.pop("format", None) != _FORMAT:
        raise InvalidFileError(f"{_KEY}: wanted a capture of format {_FORMAT}, got another or none")
    about.setdefault("model", None)  # older files have none
    check_names(_KEY, (name for name in about if name not in _OPTIONAL), (*_PLAIN, "model"))
    return about


def _fields(file: Any, about: dict[str, Any]) -> dict[str, Any]:
    plain_regions = checked_list("regions", about["regions"])
    names = set(file.keys())
    layout = dict(_TENSORS) | (dict(_OPTIONAL) if names & set(_OPTIONAL) else {})
    check_names(
        "tensors",
        names,
        [
            *layout,
            *(f"regions.{i}.{name}" for i in range(len(plain_regions)) for name in _OF_REGION),
        ],
    )
    layers = checked_layers("layers", about["layers"])
    sizes = {"L": len(layers)}
    tensors = _tensors(file, "", layout, sizes)
    copies = checked_int("copies", about["copies"], 1)
    if not plain_regions or sizes["S"] != copies * len(plain_regions):
        fail("regions", f"one for each {copies} of {sizes['S']} samples", len(plain_regions))
    images = checked_list("images", about["images"], sizes["S"])
    _check_values(tensors, sizes)
    return dict(
        layers=layers,
        prompt_rows=checked_int("prompt_rows", about["prompt_rows"], 0, sizes["R"]),
        copies=copies,
        focus_weight=_weights("focus_weight", about, sizes["S"]),
        image_weight=_weights("image_weight", about, sizes["S"]),
        images=tuple(
            checked_spans(f"images of sample {sample}", own, count)
            for sample, (own, count) in enumerate(
                zip(images, (tensors["image_positions"] >= 0).sum(1).tolist(), strict=True)
            )
        ),
        regions=tuple(
            _region(file, f"regions.{index}.", plain, sizes["H"])
            for index, plain in enumerate(plain_regions)
        ),
        model=checked_model("model", about["model"]),
        **tensors,
    )


def _weights(name: str, about: Mapping[str, Any], samples: int) -> tuple[float, ...]:
    """The weight of each sample."""
    weights = checked_list(name, about[name], samples)
    return tuple(checked_weight(name, weight) for weight in weights)


def _region(file: Any, prefix: str, plain: Any, heads: int) -> Region:
    where = prefix.removesuffix(".")
    if not isinstance(plain, dict):
        fail(where, "an object", plain)
    check_names(where, set(plain) - {"aimed_at"}, _PLAIN_OF_REGION)  # older files have one
    layers = checked_layers(prefix + "layers", plain["layers"])
    if plain["question_rule"] not in get_args(Rule):
        fail(prefix + "question_rule", f"one of {get_args(Rule)}", plain["question_rule"])
    tensors = _tensors(file, prefix, _OF_REGION, {"L": len(layers), "H": heads})
    positions = tensors["image_positions"]
    for name in ("image_positions", "focus", "boosted"):
        _check_range(prefix + name, tensors[name], 0)
    return Region(
        question_end=checked_int(prefix + "question_end", plain["question_end"], 0),
        question_rule=plain["question_rule"],
        images=checked_spans(prefix + "images", plain["images"], len(positions)),
        layers=layers,
        visual_heads=checked_heads(prefix + "visual_heads", plain["visual_heads"], layers, heads),
        background_heads=checked_heads(
            prefix + "background_heads", plain["background_heads"], layers, heads
        ),
        **tensors,
    )


def _tensors(file: Any, prefix: str, layout: _Layout, sizes: dict[str, int]) -> dict[str, Tensor]:
    """The tensors of a layout; each shape is checked before its tensor is read, however large."""
    found = {}
    for name, (dtype, axes) in layout.items():
        shape = file.get_slice(prefix + name).get_shape()
        letters = axes.split()
        if len(shape) == len(letters):
            for letter, size in zip(letters, shape, strict=True):
                sizes.setdefault(letter, size)
        wanted = [sizes.get(letter, letter) for letter in letters]
        if shape != wanted:
            fail(prefix + name, f"{[*wanted]}", shape)
        try:
            tensor = file.get_tensor(prefix + name)
        except Exception as error:  # a dtype that this torch or safetensors does not have
            raise InvalidFileError(f"{prefix}{name}: wanted {dtype}, got {error}") from error
        if tensor.dtype != dtype:
            fail(prefix + name, dtype, tensor.dtype)
        if dtype == torch.bool:
            _check_range(prefix + name, tensor.view(torch.uint8), 0, 2)
        found[name] = tensor
    return found


def _check_values(tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    """Positions and counts are in range, and ``columns`` are those of the image or all."""
    image, columns = tensors["image_positions"], tensors.get("columns")
    for name, lowest, end in (
        ("positions", -1, LARGEST),
        ("token_ids", -1, LARGEST),
        ("attended", 0, LARGEST),
        ("image_keys", 0, sizes["n"] + 1),
    ):
        _check_range(name, tensors[name], lowest, end)
    _check_range("image_positions", image, -1)
    there = image >= 0
    rising = (image[:, 1:] > image[:, :-1]) | ~there[:, 1:]
    if not rising.all() or (there[:, 1:] & ~there[:, :-1]).any():
        fail("image_positions", "ascending positions, then -1", image.tolist())
    if columns is None or torch.equal(columns, image):
        return
    if not torch.equal(columns, torch.arange(sizes["C"], device="cpu").expand_as(columns)):
        fail("columns", "those of the image, or all", columns.tolist())
    _check_range("image_positions", image, -1, sizes["C"])


def _check_range(name: str, tensor: Tensor, lowest: int, end: int = LARGEST) -> None:
    if tensor.numel() and not lowest <= int(tensor.min()) <= int(tensor.max()) < end:
        fail(name, f"{lowest} to {end - 1}", [int(tensor.min()), int(tensor.max())])
