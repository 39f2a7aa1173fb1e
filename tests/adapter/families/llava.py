"""LLaVA: a CLIP tower in front of a language model with ordinary positions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from tests.adapter.families.base import IMAGE, Family, Image, Parts, Video, family

_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 32,
}


class LlavaFamily(Family):
    """Every image is 16 x 16 pixels: 4 x 4 tokens."""

    fixed_image: ClassVar[Image | None] = (4, 4)

    def _tokens(self, item: Image | Video) -> list[int]:
        assert item == self.fixed_image
        return [IMAGE] * 16

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        if not images:
            return {}
        return {"pixel_values": torch.randn(len(images), 3, 16, 16, generator=generator)}


@family("llava", media={"image"}, needs="LlavaForConditionalGeneration")
def llava(**text: Any) -> Parts:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=transformers.LlamaConfig(**text),
        image_token_id=IMAGE,
    )
    return transformers.LlavaForConditionalGeneration, config, LlavaFamily
