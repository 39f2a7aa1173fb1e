"""LLaVA: a CLIP tower in front of a language model with ordinary positions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tests.adapter.families.base import IMAGE, VIDEO, Family, Image, Parts, Video, family

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


class TiledFamily(Family):
    """LLaVA-NeXT: (rows, columns) is the picture's size in patches of 4 x 4 pixels.

    The whole picture shrunk to 4 x 4 tokens comes first, then its tiles side by side, with a token
    after every row, cut to the picture's shape; 2 x 2 tokens make a frame of a video.
    """

    image_tokens: ClassVar[tuple[int, ...]] = (IMAGE,)
    tiles: ClassVar[tuple[Image, ...]] = ((1, 1), (1, 2), (2, 1), (2, 2))  # rows and columns
    video_end: ClassVar[int] = 0  # tokens after the last frame

    def _tokens(self, item: Image | Video) -> list[int]:
        if isinstance(item, Video):
            assert (item.rows, item.columns) == (2, 2)
            return [VIDEO] * (4 * item.frames + self.video_end)
        rows, columns = (4 * side for side in self._tiles(item))
        if item[1] / item[0] > columns / rows:
            rows -= (rows - item[0] * columns // item[1]) // 2 * 2
        else:
            columns -= (columns - item[1] * rows // item[0]) // 2 * 2
        return [IMAGE] * (16 + rows * (columns + 1))

    def _tiles(self, image: Image) -> Image:
        height, width = select_best_resolution(
            (4 * image[0], 4 * image[1]),
            [[16 * rows, 16 * columns] for rows, columns in self.tiles],
        )
        return height // 16, width // 16

    def _spans(self, item: Image | Video) -> list[tuple[int, Image | None]]:
        return [(len(self._tokens(item)), None)]

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = {}
        if images:
            tiles = [1 + math.prod(self._tiles(image)) for image in images]
            pixels = torch.randn(len(images), max(tiles), 3, 16, 16, generator=generator)
            for image, count in zip(pixels, tiles, strict=True):
                image[count:] = 0.0
            inputs["pixel_values"] = pixels
            inputs["image_sizes"] = 4 * torch.tensor(images)
        if videos:
            frames = {video.frames for video in videos}
            assert len(frames) == 1, "videos of one length only"
            shape = (len(videos), frames.pop(), 3, 16, 16)
            inputs["pixel_values_videos"] = torch.randn(shape, generator=generator)
        return inputs


class TiledVideoFamily(TiledFamily):
    """LLaVA-NeXT-Video."""

    image_tokens: ClassVar[tuple[int, ...]] = (IMAGE, VIDEO)


class OneVisionFamily(TiledVideoFamily):
    """LLaVA-OneVision: a video ends with a token of its own."""

    video_end: ClassVar[int] = 1


@family("llava", media={"image"}, needs="LlavaForConditionalGeneration")
def llava(**text: Any) -> Parts:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=transformers.LlamaConfig(**text),
        image_token_id=IMAGE,
    )
    return transformers.LlavaForConditionalGeneration, config, LlavaFamily


_PINPOINTS = [[16 * rows, 16 * columns] for rows, columns in TiledFamily.tiles]


@family("llava_next", media={"image"}, needs="LlavaNextForConditionalGeneration")
def llava_next(**text: Any) -> Parts:
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=IMAGE,
        image_grid_pinpoints=_PINPOINTS,
    )
    return transformers.LlavaNextForConditionalGeneration, config, TiledFamily


@family(
    "llava_next_video",
    media={"image", "video"},
    needs="LlavaNextVideoForConditionalGeneration",
)
def llava_next_video(**text: Any) -> Parts:
    config = transformers.LlavaNextVideoConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=_PINPOINTS,
    )
    return transformers.LlavaNextVideoForConditionalGeneration, config, TiledVideoFamily


@family(
    "llava_onevision",
    media={"image", "video"},
    needs="LlavaOnevisionForConditionalGeneration",
)
def llava_onevision(**text: Any) -> Parts:
    siglip = {name: size for name, size in _CLIP.items() if name != "projection_dim"}
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**siglip, vision_use_head=False),
        text_config=transformers.Qwen2Config(**text),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=_PINPOINTS,
    )
    return transformers.LlavaOnevisionForConditionalGeneration, config, OneVisionFamily
