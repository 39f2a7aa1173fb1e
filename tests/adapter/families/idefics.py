"""Idefics3 and SmolVLM: pictures of one size, four patches shuffled into a token."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from tests.adapter.families.base import (
    IMAGE,
    TEXT_TYPE,
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
    "image_size": 32,
    "patch_size": 4,
}


class IdeficsFamily(Family):
    """Every picture, tile and frame is 8 x 8 patches: 4 x 4 tokens between special ones."""

    fixed_image: ClassVar[Image | None] = (4, 4)

    def _tokens(self, item: Image | Video) -> list[int]:
        frame = [VISION_START, *[IMAGE] * 16]
        return [*frame * len(self._spans(item)), VISION_END]

    def _spans(self, item: Image | Video) -> list[tuple[int, Image | None]]:
        return [(16, (4, 4))] * (item.frames if isinstance(item, Video) else 1)

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        counts = [int((row != TEXT_TYPE).sum()) // 16 for row in types]
        if not max(counts):
            return {}
        pixels = torch.randn(len(counts), max(counts), 3, 32, 32, generator=generator)
        for row, count in enumerate(counts):
            pixels[row, count:] = 0.0  # no picture
        return {"pixel_values": pixels}


@family("idefics3", media={"image"}, needs="Idefics3ForConditionalGeneration")
def idefics3(**text: Any) -> Parts:
    config = transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**text),
        vision_config=_VISION,
        image_token_id=IMAGE,
    )
    return transformers.Idefics3ForConditionalGeneration, config, IdeficsFamily


@family("smolvlm", media={"image", "video"}, needs="SmolVLMForConditionalGeneration")
def smolvlm(**text: Any) -> Parts:
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=_VISION,
        image_token_id=IMAGE,
    )
    return transformers.SmolVLMForConditionalGeneration, config, IdeficsFamily
