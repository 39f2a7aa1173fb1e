"""Tiny random models of real transformers architectures, and prompts for them; no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

IMAGE, VIDEO, VISION_START, VISION_END, PAD = 100, 101, 102, 103, 0
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "llava")
# Prompts: an image and a question, with different lengths, and two images in a row.
ROWS = (
    [5, 6, (4, 4), 7, 8, 9, 10],
    [11, (4, 4), 12, 13, 14, 15, 16, 17, 18],
    [5, (4, 4), (4, 4), 7, 8, 9],
)
# Thresholds that choose several heads of a model with twelve, and a boost that shows.
LOOSE = {"gamma": 4.0, "efr_percentile": 40, "ratio_percentile": 60, "focus_min_tokens": 2}
_TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


@dataclass(frozen=True)
class Family:
    """A tiny model and what a prompt for it looks like."""

    name: str
    model: Any

    def prompt(self, *rows: list[int | tuple[int, int]], seed: int = 0) -> dict[str, Tensor]:
        """Left-padded inputs; a row is a list of token ids and of images as (rows, columns)."""
        grids = [item for row in rows for item in row if isinstance(item, tuple)]
        tokens = [[t for item in row for t in self._tokens(item)] for row in rows]
        width = max(map(len, tokens))
        ids = torch.tensor([[PAD] * (width - len(row)) + row for row in tokens])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens])
        inputs = {"input_ids": ids, "attention_mask": mask}
        generator = torch.Generator().manual_seed(seed)
        if self.name != "llava":
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        if grids and self.name == "llava":
            inputs["pixel_values"] = torch.randn(len(grids), 3, 16, 16, generator=generator)
        elif grids:
            thw = torch.tensor([[1, 2 * height, 2 * width] for height, width in grids])
            inputs["image_grid_thw"] = thw
            inputs["pixel_values"] = torch.randn(int(thw.prod(1).sum()), 96, generator=generator)
        return inputs

    def _tokens(self, item: int | tuple[int, int]) -> list[int]:
        if isinstance(item, int):
            return [item]
        image = [IMAGE] * (item[0] * item[1])
        return image if self.name == "llava" else [VISION_START, *image, VISION_END]


def build(name: str, *, seed: int = 0, attn_implementation: str = "sdpa", **text: Any) -> Family:
    """A tiny random model; its attention is made peaked, so that heads differ."""
    torch.manual_seed(seed)
    text_config = _TEXT | text
    if name == "llava":
        config: Any = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=16,
                patch_size=4,
                projection_dim=32,
            ),
            text_config=LlamaConfig(**text_config),
            image_token_id=IMAGE,
        )
        model: Any = LlavaForConditionalGeneration
    else:
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        vision = {
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "in_channels": 3,
            "spatial_merge_size": 2,
        }
        if name == "qwen2_vl":
            vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
            config = Qwen2VLConfig(
                vision_config=vision,
                text_config=text_config | {"rope_parameters": rope},
                **_QWEN_IDS,
            )
            model = Qwen2VLForConditionalGeneration
        else:
            vision |= {"hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64}
            vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
            config = Qwen2_5_VLConfig(
                vision_config=vision,
                text_config=text_config | {"rope_parameters": rope},
                **_QWEN_IDS,
            )
            model = Qwen2_5_VLForConditionalGeneration
    config._attn_implementation = attn_implementation
    model = model(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "q_proj" in parameter_name or "k_proj" in parameter_name:
                parameter.mul_(8.0)
            elif "lm_head" in parameter_name or "embed_tokens" in parameter_name:
                parameter.mul_(20.0)
    model.generation_config.eos_token_id = None
    return Family(name, model)


def greedy(model: Any, inputs: dict[str, Tensor], new_tokens: int = 6, **kwargs: Any) -> Any:
    """Greedy generation with the logits of every step."""
    return model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=kwargs.pop("do_sample", False),
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )


def logits(output: Any) -> Tensor:
    """Logits [steps, B, vocabulary] of a generation."""
    return torch.stack(output.logits)
