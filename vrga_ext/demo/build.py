"""The demo model before training: its configuration, its processor, and how both are saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from vrga_ext.demo.language import SPECIAL, VOCABULARY
from vrga_ext.demo.scenes import CELL, GRID
from vrga_ext.files import replacing

IMAGE_PIXELS = (GRID * CELL) ** 2
# Qwen2.5-VL's own processor class insists on a video processor, which needs torchvision. This one
# does the same for text and images (one image token per merged patch) and knows no video.
PROCESSOR = "PaddleOCRVLProcessor"
_IDS = {word: i for i, word in enumerate(VOCABULARY)}
_MEAN, _STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]

# ChatML; the question ends the user's turn, so its last token is the word that names the target.
CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|> {{ message['role'] }}{{ ' ' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' or 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|> assistant{{ ' ' }}
{%- endif -%}
"""


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


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of :data:`VOCABULARY`; lower-cases and drops ``? . , !``."""
    core = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<|unknown|>")
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *(normalizers.Replace(mark, " ") for mark in "?.,!")]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            *(pre_tokenizers.Split(mark, "isolated") for mark in ":;"),
        ]
    )
    core.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        unk_token="<|unknown|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        padding_side="left",
        model_max_length=1024,
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
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except ImportError:
        from transformers.models.paddleocr_vl.processing_paddleocr_vl import PaddleOCRVLProcessor
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        return PaddleOCRVLProcessor(
            Qwen2VLImageProcessorPil.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(encoding="utf-8"),
        )


def save_processor(folder: Path) -> None:
    """Write tokenizer, image processor and chat template."""
    build_tokenizer().save_pretrained(folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer_config["processor_class"] = PROCESSOR
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / "preprocessor_config.json", image_processor_config())
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def save(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write weights (float16 safetensors), configuration, processor and chat template.

    A folder beside it is filled first; its files then take the places of those of an older model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half() for name, value in model.state_dict().items()}
    with TemporaryDirectory(dir=folder, prefix=".") as beside:
        whole = Path(beside)
        model.save_pretrained(whole, state_dict=state, safe_serialization=True)
        config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"  # computes in float32; the file only rounds the weights
        _write_json(whole / "config.json", config)
        save_processor(whole)
        for file in whole.iterdir():
            with replacing(folder / file.name) as place:
                shutil.copyfile(file, place)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
