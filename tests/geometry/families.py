"""Image processors of real families, and which token each element of their output belongs to.

The latter is written down per layout, from how models order their features, and knows nothing of
:mod:`vrga_ext.geometry`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

NOWHERE = -1


class Tokens(NamedTuple):
    """Token of each element, -1 where it belongs to none, and the number of tokens."""

    of: np.ndarray
    count: int


Layout = Callable[[Mapping[str, Any], Any], "np.ndarray | Tokens"]


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


@dataclass(frozen=True)
class Case:
    """An image processor and a layout of its tokens.

    Attributes
    ----------
    name
        Its class is transformers' ``<name>ImageProcessorPil``.
    layout
        From outputs and configuration to the token of each element of ``pixel_values``; without
        a number of tokens where the last one has elements.
    settings, options
        Keywords of the class, and of the call.
    config
        Of the model.
    step
        Elements of the pixel values along each side of a token.
    """

    name: str
    layout: Layout
    step: int
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    config: Any = None

    def build(self) -> Any:
        name = f"{self.name}ImageProcessorPil"
        if not hasattr(transformers, name):
            pytest.skip(f"transformers {transformers.__version__} has no {name}")
        try:
            return getattr(transformers, name)(**self.settings)
        except ImportError as error:  # older releases have it with torchvision alone
            pytest.skip(f"transformers {transformers.__version__}: {str(error).strip()}")

    def run(self, *pictures: Any) -> Mapping[str, Any]:
        images = [Image.fromarray(p) if isinstance(p, np.ndarray) else p for p in pictures]
        return self.build()(images=images, return_tensors="pt", **self.options)

    def tokens(self, output: Mapping[str, Any]) -> Tokens:
        """Of the elements of ``pixel_values`` without the channels."""
        found = self.layout(output, self.config)
        return found if isinstance(found, Tokens) else Tokens(found, int(found.max()) + 1)


# ---- layouts -----------------------------------------------------------------------------------


def grid(rows: int, columns: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Row-major tokens of ``step`` x ``step`` elements in the corner of a plane."""
    found = np.full(shape, NOWHERE)
    tokens = np.arange(rows * columns).reshape(rows, columns)
    found[: rows * step, : columns * step] = tokens.repeat(step, 0).repeat(step, 1)
    return found


def planes(output: Mapping[str, Any], config: Any, *, step: int) -> np.ndarray:
    """Planes one after the other."""
    *_, height, width = shape = output["pixel_values"].shape
    count = int(np.prod(shape[:-3]))
    one = grid(height // step, width // step, step, (height, width))
    each = (height // step) * (width // step)
    return np.stack([np.where(one >= 0, one + index * each, one) for index in range(count)])


def cut_plane(output: Mapping[str, Any], config: Any, *, step: int) -> np.ndarray:
    """One plane, of which only the part with the picture has tokens."""
    height, width = output["pixel_values"].shape[-2:]
    rows, columns = (-(-int(side) // step) for side in output["image_sizes"][0])
    return grid(rows, columns, step, (height, width))[None]


def blocks(output: Mapping[str, Any], config: Any, *, merge: int) -> np.ndarray:
    """Patches in the order of their tokens."""
    return np.arange(len(output["pixel_values"])) // merge**2


def rows(output: Mapping[str, Any], config: Any, *, merge: int) -> np.ndarray:
    """Patches row-major, merged by the model."""
    _, height, width = output["image_grid_thw"][0].tolist()
    return grid(height // merge, width // merge, merge, (height, width)).ravel()


def positions(output: Mapping[str, Any], config: Any, *, merge: int) -> np.ndarray:
    """Patches with their column and row."""
    x, y = output["image_position_ids"][0].numpy().T
    return np.where(x < 0, NOWHERE, y // merge * ((x.max() + 1) // merge) + x // merge)


def scanned(output: Mapping[str, Any], config: Any) -> np.ndarray:
    """Patches in rows, padded at the end; one token each."""
    count = int(output["spatial_shapes"][0].prod())
    index = np.arange(output["pixel_values"].shape[1])
    return np.where(index < count, index, NOWHERE)


def strip(output: Mapping[str, Any], config: Any, *, merge: int, patch: int) -> np.ndarray:
    """All patches of all planes side by side, row-major in each plane."""
    tokens, first = [], 0
    for rows, columns in output["target_sizes"].tolist():
        y, x = np.divmod(np.arange(rows * columns), columns)
        tokens.append(first + y // merge * (columns // merge) + x // merge)
        first += rows * columns // merge**2
    return np.concatenate(tokens).repeat(patch)[None, None].repeat(patch, 1)


def mosaic(output: Mapping[str, Any], config: Any, *, pack: str, step: int) -> np.ndarray:
    """The whole picture, and tiles put together again by the model's own function."""
    module, model, extra = {
        "llava_next": ("llava_next", "LlavaNextModel", ("default",)),
        "llava_onevision": ("llava_onevision", "LlavaOnevisionModel", ()),
    }[pack]
    modeling = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    flat = planes(output, config, step=step)
    each = int(flat[0].max()) + 1
    ids = torch.arange(len(flat) * each).reshape(len(flat), each, 1).float()
    packed, _ = getattr(modeling, model).pack_image_features(
        SimpleNamespace(config=config),
        [ids],
        output["image_sizes"],
        *extra,
        image_newline=torch.tensor([-1.0]),
    )
    order = packed[0][:, 0].long().numpy()
    token = np.full(ids.numel(), NOWHERE)
    token[order[order >= 0]] = np.flatnonzero(order >= 0)
    return Tokens(np.where(flat >= 0, token[flat], NOWHERE), len(order))


def anyres(image_size: int, patch: int, pinpoints: list[list[int]]) -> Any:
    return SimpleNamespace(
        image_grid_pinpoints=pinpoints,
        vision_config=SimpleNamespace(image_size=image_size, patch_size=patch),
    )


# ---- cases, with pictures of some 100 pixels in mind --------------------------------------------

CROP = {"size": {"shortest_edge": 112}, "crop_size": square(112)}
PINPOINTS = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
GRIDS = {"size": {"shortest_edge": 56 * 56, "longest_edge": 224 * 224}}
TILES = {"crop_to_patches": True, "max_patches": 6}

CASES = {
    "llava": Case("CLIP", partial(planes, step=14), 14, CROP),
    "llava, padded": Case("Llava", partial(planes, step=14), 14, CROP | {"do_pad": True}),
    "llava_next": Case(
        "LlavaNext",
        partial(mosaic, pack="llava_next", step=14),
        14,
        CROP | {"image_grid_pinpoints": PINPOINTS},
        config=anyres(112, 14, PINPOINTS),
    ),
    "llava_onevision": Case(  # 118 = 8 * 14 + 6
        "LlavaOnevision",
        partial(mosaic, pack="llava_onevision", step=14),
        14,
        {"size": square(118), "image_grid_pinpoints": [[118, 236], [236, 118], [236, 236]]},
        config=anyres(118, 14, [[118, 236], [236, 118], [236, 236]]),
    ),
    "paligemma": Case("Siglip", partial(planes, step=14), 14, {"size": square(112)}),
    "gemma3": Case("Gemma3", partial(planes, step=28), 28, {"size": square(112)}),
    "gemma3, pan and scan": Case(
        "Gemma3",
        partial(planes, step=28),
        28,
        {"size": square(112)},
        {
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 16,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
    ),
    "gemma4": Case("Gemma4", partial(positions, merge=3), 3, {"max_soft_tokens": 70}),
    "qwen2_vl": Case("Qwen2VL", partial(blocks, merge=2), 2, GRIDS),
    "qwen3_vl": Case("Qwen2VL", partial(blocks, merge=2), 2, GRIDS | {"patch_size": 16}),
    "glm4v": Case("Glm4v", partial(blocks, merge=2), 2, GRIDS),
    "paddleocr_vl": Case("PaddleOCRVL", partial(rows, merge=2), 2, GRIDS),
    "ernie4_5_vl": Case("Ernie4_5_VLMoe", partial(blocks, merge=2), 2, GRIDS),
    "idefics3": Case(
        "Idefics3",
        partial(planes, step=28),
        28,
        {"max_image_size": {"longest_edge": 112}, "size": {"longest_edge": 336}},
    ),
    "idefics3, no tiles": Case(
        "Idefics3",
        partial(planes, step=28),
        28,
        {"max_image_size": {"longest_edge": 112}, "size": {"longest_edge": 336}},
        {"do_image_splitting": False},
    ),
    "smolvlm": Case(
        "SmolVLM",
        partial(planes, step=28),
        28,
        {"max_image_size": {"longest_edge": 112}, "size": {"longest_edge": 224}},
    ),
    "pixtral": Case("Pixtral", partial(cut_plane, step=16), 16, {"size": {"longest_edge": 160}}),
    "internvl": Case("GotOcr2", partial(planes, step=28), 28, {"size": square(112)}, TILES),
    "ovis2": Case("Ovis2", partial(planes, step=28), 28, {"size": square(112)}, TILES),
    "minicpmv4_6": Case(
        "MiniCPMV4_6", partial(strip, merge=4, patch=14), 4, {"scale_resolution": 112}
    ),
    "deepseek_vl": Case("DeepseekVL", partial(planes, step=16), 16, {"size": square(112)}),
    "janus": Case("Janus", partial(planes, step=16), 16, {"size": square(112)}),
    "siglip2": Case("Siglip2", scanned, 1, {"max_num_patches": 64}),
}
