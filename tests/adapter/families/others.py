"""InternVL, Aya Vision, Ovis2, MiniCPM-V, Kimi-K2.5, DeepSeek-VL and Molmo2."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from tests.adapter.families.base import (
    IMAGE,
    TEXT_TYPE,
    VIDEO,
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


class TileFamily(Family):
    """Every tile is 8 x 8 patches: 4 x 4 tokens; a picture of (4 r, 4 c) tokens is r x c tiles."""

    fixed_image: ClassVar[Image | None] = (4, 4)
    pixels: ClassVar[int] = 32  # per side of a tile

    def _tokens(self, item: Image | Video) -> list[int]:
        return [VISION_START, *[IMAGE] * (16 * len(self._spans(item))), VISION_END]

    def _spans(self, item: Image | Video) -> list[tuple[int, Image | None]]:
        tiles = item.frames if isinstance(item, Video) else item[0] * item[1] // 16
        return [(16, (4, 4))] * tiles

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        tiles = int((types != TEXT_TYPE).sum()) // 16
        if not tiles:
            return {}
        shape = (tiles, 3, self.pixels, self.pixels)
        return {"pixel_values": torch.randn(shape, generator=generator)}


class DeepseekFamily(TileFamily):
    """Every image is one tile, not pooled."""

    fixed_image: ClassVar[Image | None] = (4, 4)
    pixels = 16


class DeepseekHybridFamily(DeepseekFamily):
    """A second tower sees a larger picture."""

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = super()._tensors(types, images, videos, generator)
        if images:
            shape = (len(images), 3, 32, 32)
            inputs["high_res_pixel_values"] = torch.randn(shape, generator=generator)
        return inputs


class PackedFamily(Family):
    """Pictures of any size, patches in one sequence; 16 patches of 4 x 4 pixels make a token."""

    image_tokens: ClassVar[tuple[int, ...]] = (IMAGE, VIDEO)

    def _tokens(self, item: Image | Video) -> list[int]:
        if isinstance(item, Video):
            frame = [VISION_START, *[VIDEO] * (item.rows * item.columns), VISION_END]
            return frame * item.frames
        return [VISION_START, *[IMAGE] * (item[0] * item[1]), VISION_END]

    def _spans(self, item: Image | Video) -> list[tuple[int, Image | None]]:
        return [(size, None) for size, _ in super()._spans(item)]

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = {}
        frames = [(clip.rows, clip.columns) for clip in videos for _ in range(clip.frames)]
        for suffix, grids in (("", images), ("_videos", frames)):
            if grids:
                sizes = 4 * torch.tensor(grids)
                shape = (1, 3, 4, 4 * int(sizes.prod(1).sum()))
                inputs[f"pixel_values{suffix}"] = torch.randn(shape, generator=generator)
                inputs[f"target_sizes{suffix}"] = sizes
        return inputs


class KimiFamily(PackedFamily):
    """Four patches of 4 x 4 pixels make a token.

    transformers pools four frames of a video into one, but fails on the number of features then;
    here every frame is pooled alone.
    """

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = {}
        frames = [(clip.rows, clip.columns) for clip in videos for _ in range(clip.frames)]
        for pixels, grid, sizes in (
            ("pixel_values", "image_grid_thw", images),
            ("pixel_values_videos", "video_grid_thw", frames),
        ):
            if sizes:
                inputs[grid] = torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in sizes])
                patches = int(inputs[grid].prod(1).sum())
                inputs[pixels] = torch.randn(patches, 3, 4, 4, generator=generator)
        return inputs


class MolmoFamily(Family):
    """A picture is one crop of 8 x 8 patches, pooled to 4 x 4 tokens; so is a frame of a video."""

    fixed_image: ClassVar[Image | None] = (4, 4)

    def _tokens(self, item: Image | Video) -> list[int]:
        frames = item.frames if isinstance(item, Video) else 1
        return [VISION_START, *[IMAGE] * 16, VISION_END] * frames

    def _spans(self, item: Image | Video) -> list[tuple[int, Image | None]]:
        return [(16, None)] * (item.frames if isinstance(item, Video) else 1)

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = {"mm_token_type_ids": (types != TEXT_TYPE).int()}
        frames = sum(clip.frames for clip in videos)
        for kind, suffix, crops in (("image", "", len(images)), ("video", "_videos", frames)):
            if crops:
                patches = torch.arange(64 * crops).view(crops, 4, 2, 4, 2).transpose(2, 3)
                inputs[f"{kind}_token_pooling"] = patches.reshape(-1, 4)
                inputs[f"pixel_values{suffix}"] = torch.randn(crops, 64, 48, generator=generator)
        if images:
            inputs["image_grids"] = torch.tensor([[4, 4, 0, 0]] * len(images))
            inputs["image_num_crops"] = torch.ones(len(images), dtype=torch.long)
        if videos:
            inputs["video_grids"] = torch.tensor([[clip.frames, 4, 4] for clip in videos])
        return inputs


@family("internvl", media={"image", "video"}, needs="InternVLForConditionalGeneration")
def internvl(**text: Any) -> Parts:
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**text),
        vision_config=transformers.InternVLVisionConfig(**_VISION),
        image_token_id=IMAGE,
        image_seq_length=16,
    )
    return transformers.InternVLForConditionalGeneration, config, TileFamily


@family("aya_vision", media={"image"}, needs="AyaVisionForConditionalGeneration")
def aya_vision(**text: Any) -> Parts:
    """Windows in two of four layers."""
    layers = ["sliding_attention", "full_attention"]
    text |= {"num_hidden_layers": 4, "layer_types": layers * 2, "sliding_window": 8}
    config = transformers.AyaVisionConfig(
        text_config=transformers.Cohere2Config(**text),
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False),
        image_token_index=IMAGE,
    )
    return transformers.AyaVisionForConditionalGeneration, config, TileFamily


@family("ovis2", media={"image"}, needs="Ovis2ForConditionalGeneration")
def ovis2(**text: Any) -> Parts:
    config = transformers.Ovis2Config(
        text_config=transformers.Qwen2Config(**text),
        vision_config=transformers.Ovis2VisionConfig(
            **_VISION, vocab_size=40, hidden_stride=2, num_visual_indicator_tokens=2
        ),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[VISION_START, VISION_END],
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
    )
    return transformers.Ovis2ForConditionalGeneration, config, TileFamily


@family("minicpmv4_6", media={"image", "video"}, needs="MiniCPMV4_6ForConditionalGeneration")
def minicpmv4_6(**text: Any) -> Parts:
    """Linear attention in the first layer."""
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    layers = ["linear_attention", *["full_attention"] * 3]
    text |= linear | {"num_hidden_layers": 4, "layer_types": layers, "head_dim": 32}
    config = transformers.MiniCPMV4_6Config(
        text_config=transformers.Qwen3_5TextConfig(**text),
        vision_config=transformers.MiniCPMV4_6VisionConfig(**_VISION),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        insert_layer_id=0,
    )
    return transformers.MiniCPMV4_6ForConditionalGeneration, config, PackedFamily


@family("kimi_k25", media={"image", "video"}, needs="Kimi_K25ForConditionalGeneration")
def kimi_k25(**text: Any) -> Parts:
    """Latent attention: query and key of 24, value of 16; experts in the last two layers."""
    text |= {"num_key_value_heads": text["num_attention_heads"]}
    text |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16}
    text |= {"qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1}
    text |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text |= {"n_group": 1, "topk_group": 1, "n_shared_experts": 1}
    config = transformers.Kimi_K25Config(
        text_config=transformers.DeepseekV3Config(**text),
        vision_config=transformers.Kimi_K25VisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            patch_size=4,
            pos_emb_height=8,
            pos_emb_width=8,
        ),
        projection_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    return transformers.Kimi_K25ForConditionalGeneration, config, KimiFamily


_SIGLIP = _VISION | {"image_size": 16, "vision_use_head": False}


@family("deepseek_vl", media={"image"}, needs="DeepseekVLForConditionalGeneration")
def deepseek_vl(**text: Any) -> Parts:
    config = transformers.DeepseekVLConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.SiglipVisionConfig(**_SIGLIP),
        image_token_id=IMAGE,
    )
    return transformers.DeepseekVLForConditionalGeneration, config, DeepseekFamily


@family("deepseek_vl_hybrid", media={"image"}, needs="DeepseekVLHybridForConditionalGeneration")
def deepseek_vl_hybrid(**text: Any) -> Parts:
    config = transformers.DeepseekVLHybridConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.SiglipVisionConfig(**_SIGLIP),
        high_res_vision_config=transformers.SamVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            output_channels=8,
            image_size=32,
            patch_size=4,
            window_size=4,
            global_attn_indexes=[0],
            mlp_dim=32,
        ),
        image_token_id=IMAGE,
    )
    return transformers.DeepseekVLHybridForConditionalGeneration, config, DeepseekHybridFamily


@family("molmo2", media={"image", "video"}, needs="Molmo2ForConditionalGeneration", mixes=False)
def molmo2(**text: Any) -> Parts:
    """Every image token attends to every other one of the prompt, in both directions."""
    config = transformers.Molmo2Config(
        text_config=transformers.Molmo2TextConfig(head_dim=16, additional_vocab_size=8, **text),
        vision_config=transformers.Molmo2VisionConfig(
            **_VISION | {"image_size": [32, 32]}, num_key_value_heads=2, head_dim=16
        ),
        adapter_config=transformers.Molmo2AdapterConfig(
            vision_feature_layer=[1, 0],
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=32,
            text_hidden_size=text["hidden_size"],
        ),
        image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
        image_patch_id=IMAGE,
        frame_start_token_id=104,
        frame_end_token_id=105,
        low_res_image_start_token_id=106,
    )
    return transformers.Molmo2ForConditionalGeneration, config, MolmoFamily
