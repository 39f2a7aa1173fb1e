"""Mistral 3 and Pixtral: pictures of any size, a token after every row of patches."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from tests.adapter.families.base import (
    IMAGE,
    VISION_END,
    VISION_START,
    Family,
    Image,
    Parts,
    Video,
    family,
)

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 4,
}
BREAK = VISION_START  # the token between two rows


class PixtralFamily(Family):
    """4 x 4 pixels make a token."""

    patch = 4

    def _tokens(self, item: Image | Video) -> list[int]:
        assert isinstance(item, tuple)
        rows, columns = item
        return [*([IMAGE] * columns + [BREAK]) * (rows - 1), *[IMAGE] * columns, VISION_END]

    def _spans(self, item: Image | Video) -> list[tuple[int, Image | None]]:
        assert isinstance(item, tuple)
        return [(item[1], None)] * item[0]  # without a processor every row is a span of its own

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        if not images:
            return {}
        sizes = self.patch * torch.tensor(images)
        pixels = torch.zeros(len(images), 3, *sizes.amax(0).tolist())
        for image, (height, width) in zip(pixels, sizes.tolist(), strict=True):
            image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
        return {"pixel_values": pixels, "image_sizes": sizes}


class Mistral3Family(PixtralFamily):
    """2 x 2 patches of 4 x 4 pixels are merged into a token."""

    patch = 8


@family("mistral3", media={"image"}, needs="Mistral3ForConditionalGeneration")
def mistral3(**text: Any) -> Parts:
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(sliding_window=None, head_dim=16, **text),
        vision_config=transformers.PixtralVisionConfig(**_VISION),
        image_token_index=IMAGE,
    )
    return transformers.Mistral3ForConditionalGeneration, config, Mistral3Family


@family("pixtral", media={"image"}, needs="PixtralVisionConfig")
def pixtral(**text: Any) -> Parts:
    """The published Pixtral is a LLaVA with another vision tower."""
    config = transformers.LlavaConfig(
        text_config=transformers.MistralConfig(sliding_window=None, head_dim=16, **text),
        vision_config=transformers.PixtralVisionConfig(**_VISION),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration, config, PixtralFamily
