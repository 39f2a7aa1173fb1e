"""Real processors from tokenizers trained on the spot, with chat templates of three styles."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    LlavaProcessor,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
)

_TEXT = """What is shown here? Describe the scene. USER: ASSISTANT: How many birds sit on the fence?
Which colour is the car behind the tree? Answer in one word.\n user system assistant\n
Read the sign!
Is there a dog? Yes. No. 12 7 2024 where when who why x = y + 2; la maison rouge [INST] [/INST]
"""

# One turn is a list of content parts, as for any processor.
_PART = (
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
)


def _part(image: str) -> str:
    return _PART.format(image=image)


TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        + _part("<|vision_start|><|image_pad|><|vision_end|>")
        + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "vicuna": (
        "{% for message in messages %}{{ message['role'] | upper }}: "
        + _part("<image>\n")
        + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "instruct": "<s>{% for message in messages %}[INST]" + _part("<image>") + "[/INST]{% endfor %}",
}
IMAGE_TOKEN = {"chatml": "<|image_pad|>", "vicuna": "<image>", "instruct": "<image>"}
_SPECIAL = {
    "chatml": [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
    ],
    "vicuna": ["<image>"],
    "instruct": ["<s>", "[INST]", "[/INST]", "<image>"],
}


def tokenizer(style: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens of one style."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", *_SPECIAL[style]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([_TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        additional_special_tokens=_SPECIAL[style],
        extra_special_tokens={"image_token": IMAGE_TOKEN[style]},
        padding_side="left",
    )


def processor(style: str) -> Any:
    """A processor with the template of one style; none of them needs torchvision."""
    common = {"tokenizer": tokenizer(style), "chat_template": TEMPLATES[style]}
    if style == "chatml":
        image_processor = Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=4096)
        return PaddleOCRVLProcessor(image_processor=image_processor, **common)
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **common,
    )
