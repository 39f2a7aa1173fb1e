"""GLM-4V: Qwen's pixels and grids, but the frames of a video are written with the image's token.

transformers counts those tokens as the images' as well, so it takes no batch with both.
"""

from __future__ import annotations

from typing import Any, ClassVar

import transformers

from tests.adapter.families.base import IMAGE, VIDEO, Image, Parts, Video, family
from tests.adapter.families.qwen import QwenFamily

_IMAGE_START, _IMAGE_END, _VIDEO_START, _VIDEO_END = 104, 105, 106, 107
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,  # stands in no prompt
    "image_start_token_id": _IMAGE_START,
    "image_end_token_id": _IMAGE_END,
    "video_start_token_id": _VIDEO_START,
    "video_end_token_id": _VIDEO_END,
}
_ROPE = {
    "rope_type": "default",
    "mrope_section": [2, 3, 3],
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
}
_VISION = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "image_size": 16,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
}


class GlmFamily(QwenFamily):
    """A video is a frame and its time, one after the other, between tokens of its own."""

    image_tokens: ClassVar[tuple[int, ...]] = (IMAGE,)

    def _tokens(self, item: Image | Video) -> list[int]:
        if not isinstance(item, Video):
            return [_IMAGE_START, *[IMAGE] * (item[0] * item[1]), _IMAGE_END]
        frame = self._tokens((item.rows, item.columns))
        frames = [token for index in range(item.frames) for token in (*frame, 20, 21 + index)]
        return [_VIDEO_START, *frames, _VIDEO_END]


def _vision(text: dict[str, Any]) -> dict[str, Any]:
    return _VISION | {"out_hidden_size": text["hidden_size"]}


def _text(text: dict[str, Any]) -> dict[str, Any]:
    return text | {"rope_parameters": _ROPE}


@family("glm4v", media={"image", "video"}, needs="Glm4vForConditionalGeneration", mixes=False)
def glm4v(**text: Any) -> Parts:
    config = transformers.Glm4vConfig(vision_config=_vision(text), text_config=_text(text), **_IDS)
    return transformers.Glm4vForConditionalGeneration, config, GlmFamily


@family("glm46v", media={"image", "video"}, needs="Glm46VForConditionalGeneration", mixes=False)
def glm46v(**text: Any) -> Parts:
    config = transformers.Glm46VConfig(
        vision_config=_vision(text) | {"model_type": "glm4v_vision"},
        text_config=_text(text) | {"model_type": "glm4v_text"},
        **_IDS,
    )
    return transformers.Glm46VForConditionalGeneration, config, GlmFamily


@family(
    "glm4v_moe", media={"image", "video"}, needs="Glm4vMoeForConditionalGeneration", mixes=False
)
def glm4v_moe(**text: Any) -> Parts:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = transformers.Glm4vMoeConfig(
        vision_config=_vision(text), text_config=_text(text) | experts, **_IDS
    )
    return transformers.Glm4vMoeForConditionalGeneration, config, GlmFamily
