"""Gemma 3 and 4, PaliGemma 1 and 2: prefix masks, image blocks, windows, soft-caps, shared K/V."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from tests.adapter.families.base import (
    IMAGE,
    IMAGE_TYPE,
    VIDEO,
    VISION_END,
    VISION_START,
    Family,
    Image,
    Parts,
    Video,
    family,
)
from tests.adapter.families.llava import LlavaFamily

_SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "vision_use_head": False,
}


class PaliGemmaFamily(LlavaFamily):
    """16 x 16 pixels in patches of 4 x 4; the whole prompt is a bidirectional prefix."""

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = super()._tensors(types, images, videos, generator)
        return inputs | {"token_type_ids": torch.zeros_like(types)}


class CappedFamily(PaliGemmaFamily):
    """The language model caps its scores, which sdpa does not compute."""

    implementations: ClassVar[tuple[str, ...]] = ("eager",)


class Gemma3Family(LlavaFamily):
    """8 x 8 patches pooled to 4 x 4 tokens, which attend to each other in both directions."""

    def _tokens(self, item: Image | Video) -> list[int]:
        return [VISION_START, *super()._tokens(item), VISION_END]

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = {"token_type_ids": (types == IMAGE_TYPE).int()}
        if images:
            inputs["pixel_values"] = torch.randn(len(images), 3, 32, 32, generator=generator)
        return inputs


class Gemma4Family(Family):
    """2 x 2 patches of 4 x 4 pixels are pooled to a token; frames of a video are runs of tokens."""

    image_tokens: ClassVar[tuple[int, ...]] = (IMAGE, VIDEO)
    peaked_norms: ClassVar[float] = 0.0

    def _tokens(self, item: Image | Video) -> list[int]:
        if isinstance(item, Video):
            frame = [VISION_START, *[VIDEO] * (item.rows * item.columns), VISION_END]
            return [token for index in range(item.frames) for token in (21 + index, *frame)]
        return [VISION_START, *[IMAGE] * (item[0] * item[1]), VISION_END]

    def _spans(self, item: Image | Video) -> list[tuple[int, Image | None]]:
        return [(size, None) for size, _ in super()._spans(item)]  # positions count tokens

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        inputs = {"mm_token_type_ids": types.int()}
        if images:
            pixels, positions = _patches(images, generator)
            inputs |= {"pixel_values": pixels, "image_position_ids": positions}
        if videos:
            frames = [(clip.rows, clip.columns) for clip in videos for _ in range(clip.frames)]
            pixels, positions = _patches(frames, generator)
            counts = [clip.frames for clip in videos]
            if "num_frames_per_video" in inspect.signature(self.model.forward).parameters:
                inputs["num_frames_per_video"] = torch.tensor(counts)
            else:  # transformers 5.16: videos of one length, stacked
                pixels, positions = (
                    tensor.unflatten(0, (len(counts), counts[0])) for tensor in (pixels, positions)
                )
            inputs |= {"pixel_values_videos": pixels, "video_position_ids": positions}
        return inputs


def _patches(grids: list[Image], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches [n, patches, 48] of pictures, and their (x, y), padded with -1."""
    sizes = [4 * rows * columns for rows, columns in grids]
    pixels = torch.zeros(len(grids), max(sizes), 48)
    positions = torch.full((len(grids), max(sizes), 2), -1)
    for index, (_, columns) in enumerate(grids):
        n = torch.arange(sizes[index])
        positions[index, : len(n)] = torch.stack([n % (2 * columns), n // (2 * columns)], -1)
        pixels[index, : len(n)] = torch.rand(len(n), 48, generator=generator)
    return pixels, positions


@family("gemma3", media={"image"}, needs="Gemma3ForConditionalGeneration")
def gemma3(**text: Any) -> Parts:
    """A sliding window in the second of four layers, shorter than the prompts."""
    layers = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    text |= {"num_hidden_layers": 4, "layer_types": layers, "sliding_window": 8}
    text |= {"head_dim": 16, "query_pre_attn_scalar": 16}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**text),
        vision_config=transformers.SiglipVisionConfig(**_SIGLIP | {"image_size": 32}),
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
    )
    return transformers.Gemma3ForConditionalGeneration, config, Gemma3Family


@family("gemma4", media={"image", "video"}, needs="Gemma4ForConditionalGeneration")
def gemma4(**text: Any) -> Parts:
    """A window in the second layer, larger heads in the others, the last layer without K and V."""
    layers = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    text |= {"num_hidden_layers": 4, "layer_types": layers, "num_kv_shared_layers": 1}
    text |= {"sliding_window": 8, "head_dim": 16, "global_head_dim": 32}
    text |= {"num_global_key_value_heads": 1, "attention_k_eq_v": True}
    text |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128}
    config = transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(**text),
        vision_config=transformers.Gemma4VisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            patch_size=4,
            pooling_kernel_size=2,
            position_embedding_size=64,
        ),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=104,
        boi_token_id=VISION_START,
        eoi_token_id=VISION_END,
        boa_token_id=105,
        eoa_token_index=106,
    )
    return transformers.Gemma4ForConditionalGeneration, config, Gemma4Family


def _paligemma(text_config: Any, kind: type[Family] = PaliGemmaFamily) -> Parts:
    config = transformers.PaliGemmaConfig(
        text_config=text_config,
        vision_config=transformers.SiglipVisionConfig(**_SIGLIP),
        image_token_index=IMAGE,
        projection_dim=text_config.hidden_size,
        hidden_size=text_config.hidden_size,
        vocab_size=text_config.vocab_size,
    )
    return transformers.PaliGemmaForConditionalGeneration, config, kind


@family("paligemma", media={"image"}, needs="PaliGemmaForConditionalGeneration")
def paligemma(**text: Any) -> Parts:
    return _paligemma(transformers.GemmaConfig(head_dim=16, **text))


@family("paligemma2", media={"image"}, needs="PaliGemmaForConditionalGeneration")
def paligemma2(**text: Any) -> Parts:
    """Scores are capped, low enough to matter here; windows in every second layer."""
    text |= {"attn_logit_softcapping": 5.0, "head_dim": 16, "query_pre_attn_scalar": 16}
    text |= {"num_hidden_layers": 4, "sliding_window": 8}
    return _paligemma(transformers.Gemma2Config(**text), CappedFamily)
