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


class TimestampFamily(QwenFamily):
    """Every frame of a video is a run of its own, behind a timestamp written as text."""

    def _tokens(self, item: Image | Video) -> list[int]:
        if not isinstance(item, Video):
            return super()._tokens(item)
        frame = [VISION_START, *[VIDEO] * (item.rows * item.columns), VISION_END]
        return [token for index in range(item.frames) for token in (20, 21 + index, *frame)]


@family("qwen2_vl", media={"image", "video"}, needs="Qwen2VLForConditionalGeneration")
def qwen2_vl(**text: Any) -> Parts:
    vision = _VISION | {"embed_dim": 32, "hidden_size": text["hidden_size"], "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(
        vision_config=vision, text_config=text | {"rope_parameters": _ROPE}, **_IDS
    )
    return transformers.Qwen2VLForConditionalGeneration, config, QwenFamily


@family("qwen2_5_vl", media={"image", "video"}, needs="Qwen2_5_VLForConditionalGeneration")
def qwen2_5_vl(**text: Any) -> Parts:
    vision = _VISION | {"hidden_size": 32, "intermediate_size": 32}
    vision |= {"out_hidden_size": text["hidden_size"]}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config=text | {"rope_parameters": _ROPE}, **_IDS
    )
    return transformers.Qwen2_5_VLForConditionalGeneration, config, QwenFamily


_QWEN3_VISION = _VISION | {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_position_embeddings": 64,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def _vision(text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return _QWEN3_VISION | {"out_hidden_size": text["hidden_size"]} | more


def _interleaved(text: dict[str, Any]) -> dict[str, Any]:
    rope = _ROPE | {"mrope_interleaved": True}
    return {"head_dim": 16} | text | {"rope_parameters": rope}


def _hybrid(text: dict[str, Any]) -> dict[str, Any]:
    """Linear attention in the first layer, full attention in the others."""
    layers = ["linear_attention", *["full_attention"] * (text["num_hidden_layers"] - 1)]
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    # All of a head is rotated, as elsewhere, so that the sections are the same.
    rope = {"partial_rotary_factor": 1.0, **_ROPE, "mrope_interleaved": True}
    return {"head_dim": 16, "layer_types": layers} | linear | text | {"rope_parameters": rope}


@family("qwen3_vl", media={"image", "video"}, needs="Qwen3VLForConditionalGeneration")
def qwen3_vl(**text: Any) -> Parts:
    config = transformers.Qwen3VLConfig(
        vision_config=_vision(text, deepstack_visual_indexes=[0]),
        text_config=_interleaved(text),
        **_IDS,
    )
    return transformers.Qwen3VLForConditionalGeneration, config, TimestampFamily


@family("qwen3_vl_moe", media={"image", "video"}, needs="Qwen3VLMoeForConditionalGeneration")
def qwen3_vl_moe(**text: Any) -> Parts:
    config = transformers.Qwen3VLMoeConfig(
        vision_config=_vision(text, deepstack_visual_indexes=[0]),
        text_config=_interleaved(text) | _EXPERTS,
        **_IDS,
    )
    return transformers.Qwen3VLMoeForConditionalGeneration, config, TimestampFamily


@family("qwen3_5", media={"image", "video"}, needs="Qwen3_5ForConditionalGeneration")
def qwen3_5(**text: Any) -> Parts:
    config = transformers.Qwen3_5Config(
        vision_config=_vision(text), text_config=_hybrid(text), **_IDS
    )
    return transformers.Qwen3_5ForConditionalGeneration, config, TimestampFamily


@family("qwen3_5_moe", media={"image", "video"}, needs="Qwen3_5MoeForConditionalGeneration")
def qwen3_5_moe(**text: Any) -> Parts:
    experts = _EXPERTS | {"shared_expert_intermediate_size": 32}
    config = transformers.Qwen3_5MoeConfig(
        vision_config=_vision(text), text_config=_hybrid(text) | experts, **_IDS
    )
    return transformers.Qwen3_5MoeForConditionalGeneration, config, TimestampFamily
