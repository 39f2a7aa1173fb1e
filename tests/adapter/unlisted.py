"""Tiny models of types that are not in the support matrix, and prompts for them.

A builder returns a model and the inputs of a prompt: two tokens, image tokens, three tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.adapter.families.base import IMAGE, PAD, make_peaked

Built = tuple[Any, dict[str, Tensor]]

VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KOSMOS_TEXT = {
    "vocab_size": 128,
    "embed_dim": 32,
    "layers": 3,
    "ffn_dim": 32,
    "attention_heads": 4,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
BEFORE, AFTER = [1, 9], [20, 21, 22]


def prompt(image: list[int]) -> dict[str, Tensor]:
    ids = torch.tensor([BEFORE + image + AFTER])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def build(builder: Callable[..., Built], **config: Any) -> Built:
    """What a builder makes, with peaked attention; skipped where transformers has no such model."""
    torch.manual_seed(0)
    try:
        model, inputs = builder(**config)
    except AttributeError as error:
        if not str(error).startswith("module transformers"):
            raise
        pytest.skip(f"transformers {transformers.__version__}: {error}")
    make_peaked(model)
    return model.eval(), inputs


# ---- no language model that writes token by token ------------------------------------------------


def modernvbert(**config: Any) -> Built:
    """A bidirectional encoder."""
    special = {"cls_token_id": 1, "sep_token_id": 2}
    text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    config = transformers.ModernVBertConfig(
        text_config=transformers.ModernBertConfig(**text | special),
        vision_config=transformers.SiglipVisionConfig(**VISION),
        image_token_id=IMAGE,
        pixel_shuffle_factor=1,
        **config,
    )
    inputs = prompt([IMAGE] * 4) | {"pixel_values": noise(1, 1, 3, 8, 8)}
    return transformers.ModernVBertForMaskedLM(config), inputs


def neomme(**config: Any) -> Built:
    """A bidirectional encoder without a text configuration of its own."""
    text = {name: value for name, value in TEXT.items() if name != "bos_token_id"}
    text |= {"embedding_rank": 16, "head_dim": 16, "patch_size": 4, "image_token_id": IMAGE}
    config = transformers.NeoMMEConfig(**text, **config)
    return transformers.NeoMMEForMaskedLM(config), prompt([IMAGE] * 4) | {
        "pixel_values": noise(4, 48)
    }


def diffusion_gemma(**config: Any) -> Built:
    """The decoder refines a canvas, all of whose tokens see each other."""
    experts = {"num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 16}
    heads = {"head_dim": 8, "global_head_dim": 8, "num_global_key_value_heads": 2}
    layers = ["sliding_attention", "full_attention", "full_attention"]
    window = {"sliding_window": 8, "layer_types": layers}
    config = transformers.DiffusionGemmaConfig(
        text_config=transformers.DiffusionGemmaTextConfig(**TEXT, **experts, **heads, **window),
        vision_config=transformers.Gemma4VisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            patch_size=4,
        ),
        image_token_id=IMAGE,
        canvas_length=4,
        **config,
    )
    return transformers.DiffusionGemmaForBlockDiffusion(config), prompt([7])


# ---- a language model that makes no cache of its own ---------------------------------------------


def granite4_vision(**config: Any) -> Built:
    try:
        text = transformers.models.granite4_vision.Granite4VisionTextConfig(**TEXT)
    except AttributeError as error:
        raise AttributeError("module transformers has no Granite4VisionTextConfig") from error
    config = transformers.Granite4VisionConfig(
        text_config=text,
        vision_config=transformers.CLIPVisionConfig(**VISION | {"hidden_size": 64}),
        qformer_config=transformers.Blip2QFormerConfig(
            hidden_size=64,
            num_attention_heads=2,
            num_hidden_layers=1,
            intermediate_size=32,
            encoder_hidden_size=64,
        ),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[8, 8], [8, 16]],
        downsample_rate="1/2",
        deepstack_layer_map=[(1, 0), (2, 1)],
        spatial_target_layers=[0, 1, 2, 2],
        **config,
    )
    inputs = prompt([IMAGE] * 3) | {
        "pixel_values": noise(1, 2, 3, 8, 8),
        "image_sizes": torch.tensor([[8, 8]]),
    }
    return transformers.Granite4VisionForConditionalGeneration(config), inputs


# ---- no image token in the configuration ---------------------------------------------------------


def kosmos2(**config: Any) -> Built:
    """The ids of image tokens are those of text; each call says where the image is."""
    config = transformers.Kosmos2Config(
        text_config=KOSMOS_TEXT, vision_config=VISION, latent_query_num=4, **config
    )
    inputs = prompt([9, 20, 21, 22]) | {
        "pixel_values": noise(1, 3, 8, 8),
        "image_embeds_position_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 0]]),
    }
    return transformers.Kosmos2ForConditionalGeneration(config), inputs


def kosmos2_5(**config: Any) -> Built:
    """The same, with marks around the image as -1; its image token begins every text, too."""
    vision = {name: VISION[name] for name in VISION if not name.endswith("_size")}
    vision |= {"hidden_size": 32, "patch_embed_hidden_size": 48, "intermediate_size": 32}
    config = transformers.Kosmos2_5Config(
        text_config=KOSMOS_TEXT,
        vision_config=vision | {"head_dim": 16, "max_num_patches": 16},
        latent_query_num=4,
        **config,
    )
    inputs = prompt([1, 1, 1, 1]) | {
        "flattened_patches": noise(1, 16, 50).abs(),
        "image_embeds_position_mask": torch.tensor([[0, -1, 1, 1, 1, 1, -1, 0, 0]]),
    }
    return transformers.Kosmos2_5ForConditionalGeneration(config), inputs


def phi4_multimodal(**config: Any) -> Built:
    """The vision tower's configuration names the image token."""
    audio = {"hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2}
    audio |= {"nemo_conv_channels": 8, "ext_pw_out_channel": 32, "input_size": 8}
    config = transformers.Phi4MultimodalConfig(
        **TEXT,
        vision_config=VISION | {"crop_size": 8, "image_token_id": IMAGE},
        audio_config=audio | {"time_reduction": 2, "audio_token_id": 101},
        **config,
    )
    return transformers.Phi4MultimodalForCausalLM(config), prompt([IMAGE] * 5) | {
        "image_pixel_values": noise(1, 2, 3, 8, 8),
        "image_sizes": torch.tensor([[8, 8]]),
        "image_attention_mask": torch.ones(1, 2, 2, 2),
    }


def blip(kind: str, **config: Any) -> Built:
    """Queries read the image for the language model; of a video, those of four frames."""
    text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=VISION,
        qformer_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_hidden_size": 32,
            "vocab_size": 128,
        },
        text_config={
            "model_type": "opt",
            "ffn_dim": 32,
            "dropout": 0.0,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 64,
            **text,
        },
        num_query_tokens=4,
        **config,
    )
    frames = [4] if kind == "InstructBlipVideo" else []
    inputs = prompt([IMAGE] * 4 * sum(frames or [1]))
    inputs["pixel_values"] = noise(1, *frames, 3, 8, 8)
    if kind != "Blip2":
        inputs["qformer_input_ids"] = torch.tensor([[5, 6]])
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), inputs


def minicpmv4_7(**config: Any) -> Built:
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    layers = ["linear_attention", "full_attention", "full_attention"]
    config = transformers.MiniCPMV4_7Config(
        text_config=transformers.Qwen3_5TextConfig(
            **TEXT, **linear, layer_types=layers, head_dim=32
        ),
        vision_config=transformers.MiniCPMV4_7VisionConfig(**VISION, insert_layer_id=0),
        insert_layer_id=0,
        **config,
    )
    inputs = prompt([IMAGE] * 4)
    inputs |= {
        "pixel_values": noise(1, 3, 4, 4 * 64),
        "target_sizes": torch.tensor([[8, 8]]),
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE).int(),
    }
    return transformers.MiniCPMV4_7ForConditionalGeneration(config), inputs


# ---- models that see the image in another way ----------------------------------------------------


def git() -> Any:
    """Image features stand before the prompt."""
    text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    return transformers.GitForCausalLM(transformers.GitConfig(**text, vision_config=VISION)).eval()


def idefics() -> Any:
    """Cross-attention between the layers."""
    text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    config = transformers.IdeficsConfig(
        **text,
        cross_layer_interval=1,
        use_resampler=False,
        vision_config={"embed_dim": 32, "image_size": 8, "patch_size": 4, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "intermediate_size": 32},
    )
    return transformers.IdeficsForVisionText2Text(config).eval()
