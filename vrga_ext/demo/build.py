"""The demo model before training: its configuration, its processor, and how both are saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from vrga_ext.demo.language import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from vrga_ext.demo.scenes import CELL, GRID

IMAGE_PIXELS = (GRID * CELL) ** 2
# Qwen2.5-VL's own processor class insists on a video processor, which needs torchvision. This one
# does the same for text and images (one image token per merged patch) and knows no video.
PROCESSOR = "PaddleOCRVLProcessor"
_IDS = {word: i for i, word in enumerate(VOCABULARY)}
_MEAN, _STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]


def token(word: str) -> int:
    """The id of a word of the demo's vocabulary; ``KeyError`` when it has none."""
    return _IDS[word]


def build_config() -> Qwen2_5_VLConfig:
    """About 0.9 M parameters; ``window_size`` 28 keeps each merged image token to its own cell."""
    eos, pad = token("<|im_end|>"), token("<|pad|>")
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
            },
            "tie_word_embeddings": True,
            "bos_token_id": token("<|im_start|>"),
            "eos_token_id": eos,
            "pad_token_id": pad,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": CELL,
            "fullatt_block_indexes": [],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model; its weights are a function of ``seed``."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config())
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=256,
        bos_token_id=token("<|im_start|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|pad|>"),
    )
    return model


def image_processor_config() -> dict[str, object]:
    """Qwen2-VL's image processor, sized so that a picture becomes about ``GRID**2`` tokens."""
    return {
        "image_processor_type": "Qwen2VLImageProcessorPil",
        "processor_class": PROCESSOR,
        "size": {"shortest_edge": 56 * 56, "longest_edge": IMAGE_PIXELS},
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": _MEAN,
        "image_std": _STD,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes ``[..., 3]`` as the image processor scales them."""
    return (pixels.float() / 255.0 - _MEAN[0]) / _STD[0]


def load_processor(folder: Path) -> Any:
    """The saved processor, through ``AutoProcessor``.

    Some transformers releases cannot resolve any image processor through ``AutoProcessor`` unless
    torchvision is installed; there the same classes are put together by hand.
    """
    try:
        return AutoProcessor.from_pretrained(folder)
    except ImportError:
        from transformers.models.paddleocr_vl.processing_paddleocr_vl import PaddleOCRVLProcessor
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        return PaddleOCRVLProcessor(
            Qwen2VLImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
        )


def save_processor(folder: Path) -> None:
    """Write tokenizer, image processor and chat template."""
    build_tokenizer().save_pretrained(folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer_config["processor_class"] = PROCESSOR
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / "preprocessor_config.json", image_processor_config())
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def save(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write weights (float16 safetensors), configuration, processor and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"  # computes in float32; the file only rounds the weights
    _write_json(folder / "config.json", config)
    save_processor(folder)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
