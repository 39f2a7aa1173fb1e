"""Qwen-VL: patches in rows, grids in tensors of their own, multi-axis rotary positions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from tests.adapter.families.base import (
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    Family,
    Image,
    Parts,
    Video,
    family,
)

_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_VISION = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


class QwenFamily(Family):
    """Four patches of 2 x 4 x 4 pixels make a token; a video is one run of tokens."""

    image_tokens: ClassVar[tuple[int, ...]] = (IMAGE, VIDEO)

    def _tokens(self, item: Image | Video) -> list[int]:
        if isinstance(item, Video):
            run = [VIDEO] * (item.frames * item.rows * item.columns)
        else:
            run = [IMAGE] * (item[0] * item[1])
        return [VISION_START, *run, VISION_END]

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = {"mm_token_type_ids": types.int()}
        stills = [(1, *image) for image in images]
        clips = [(video.frames, video.rows, video.columns) for video in videos]
        for pixels, grid, sizes in (
            ("pixel_values", "image_grid_thw", stills),
            ("pixel_values_videos", "video_grid_thw", clips),
        ):
            if sizes:
                thw = torch.tensor(sizes) * torch.tensor([1, 2, 2])
                inputs[grid] = thw
                inputs[pixels] = torch.randn(int(thw.prod(1).sum()), 96, generator=generator)
        return inputs


@family("qwen2_vl", media={"image", "video"}, needs="Qwen2VLForConditionalGeneration")
def qwen2_vl(**text: Any) -> Parts:
    vision = _VISION | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(
        vision_config=vision, text_config=text | {"rope_parameters": _ROPE}, **_IDS
    )
    return transformers.Qwen2VLForConditionalGeneration, config, QwenFamily


@family("qwen2_5_vl", media={"image", "video"}, needs="Qwen2_5_VLForConditionalGeneration")
def qwen2_5_vl(**text: Any) -> Parts:
    vision = _VISION | {"hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config=text | {"rope_parameters": _ROPE}, **_IDS
    )
    return transformers.Qwen2_5_VLForConditionalGeneration, config, QwenFamily
