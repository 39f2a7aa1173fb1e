"""Real processors from tokenizers trained on the spot, with chat templates of many styles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
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
</tool_response> User: Assistant: model\n\n \n(a) yes (b) no:\nof/on /nothink '?'.\n\n "!"\n";
"""
# Letters with what stands before them, punctuation with the line that it ends, and runs of blanks.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _turns(body: str, generation: str, image: str, before: str = "") -> str:
    """A template that goes through messages; ``@`` in ``body`` is the text of one."""
    parts = (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{% if part.type == 'image' %}" + image + "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}"
    )
    return (
        before
        + "{% for m in messages %}"
        + body.replace("@", parts)
        + "{% endfor %}{% if add_generation_prompt %}"
        + generation
        + "{% endif %}"
    )


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Style:
    """A way to write conversations."""

    template: str
    image: str  # token
    marks: tuple[str, ...]  # special tokens
    words: tuple[str, ...] = ()  # other tokens that are added to the vocabulary
    roles: tuple[str, ...] = ("system",)  # beyond user and assistant
    switches: tuple[str, ...] = ()
    pieces: bool = False  # a tokenizer with blanks in front of words, as SentencePiece has


_CHATML = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_THOUGHT = ("<think>", "</think>")
STYLES = {
    "chatml": Style(
        _turns("<|im_start|>{{ m.role }}\n@<|im_end|>\n", "<|im_start|>assistant\n", _QWEN_IMAGE),
        "<|image_pad|>",
        _CHATML,
    ),
    "vicuna": Style(
        _turns("{{ m.role | upper }}: @ ", "ASSISTANT:", "<image>\n"), "<image>", ("<image>",)
    ),
    "instruct": Style(
        _turns(
            "{% if m.role == 'user' %}[INST]@[/INST]{% else %} @</s>{% endif %}",
            "",
            "<image>",
            before="<s>",
        ),
        "<image>",
        ("<s>", "</s>", "[INST]", "[/INST]", "<image>"),
        roles=(),
    ),
    # Thinks unless told otherwise; tools speak inside a user's turn; thoughts of earlier turns go.
    "switched": Style(
        _turns(
            "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n@\n</tool_response>"
            "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{% if loop.last %}<think>\n"
            "{{ m.reasoning_content | default('') }}\n</think>\n\n{% endif %}@"
            "{% else %}<|im_start|>{{ m.role }}\n@{% endif %}<|im_end|>\n",
            "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false"
            " %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}",
            _QWEN_IMAGE,
        ),
        "<|image_pad|>",
        _CHATML,
        words=(*_THOUGHT, "<tool_response>", "</tool_response>"),
        roles=("system", "tool"),
        switches=("enable_thinking",),
    ),
    # Writes an empty thought only if told to, reads it as a default, and has another switch.
    "silenced": Style(
        _turns(
            "<|im_start|>{{ m.role }}\n@<|im_end|>\n",
            "<|im_start|>assistant\n{% if not thinking %}<think>\n\n</think>\n\n{% endif %}"
            "{% if brief %}In one word:{% endif %}",
            _QWEN_IMAGE,
            before="{% set thinking = thinking | default(true) %}",
        ),
        "<|image_pad|>",
        _CHATML,
        words=_THOUGHT,
        switches=("thinking", "brief"),
    ),
    # Always thinks, and says so in its generation prompt alone; a default system text.
    "thinker": Style(
        _turns(
            "<|im_start|>{{ m.role }}\n@<|im_end|>\n",
            "<|im_start|>assistant\n<think>\n",
            _QWEN_IMAGE,
            before="{% if messages[0].role != 'system' %}<|im_start|>system\nAnswer the user."
            "<|im_end|>\n{% endif %}",
        ),
        "<|image_pad|>",
        _CHATML,
        words=_THOUGHT,
    ),
    # Nothing closes a turn, and the switch writes into the user's words.
    "observer": Style(
        _turns(
            "{% if m.role == 'tool' %}<|observation|>\n@{% else %}<|{{ m.role }}|>\n@"
            "{% if m.role == 'user' and enable_thinking is defined and not enable_thinking %}"
            "/nothink{% endif %}{% endif %}",
            "<|assistant|>\n{% if enable_thinking is defined and not enable_thinking %}"
            "<think></think>\n{% endif %}",
            "<|begin_of_image|><|image|><|end_of_image|>",
            before="[gMASK]<sop>",
        ),
        "<|image|>",
        (
            *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
            *("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
        ),
        words=_THOUGHT,
        roles=("system", "tool"),
        switches=("enable_thinking",),
    ),
    # Images with a line of their own behind them.
    "context": Style(
        _turns(
            "<|im_start|>{{ m.role }}\n@<|im_end|>\n",
            "<|im_start|>assistant\n",
            "<IMG_CONTEXT>\n",
        ),
        "<IMG_CONTEXT>",
        ("<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>"),
    ),
    # Images first wherever they are, no mark but theirs, and blocks that tell who generates.
    "plain": Style(
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.role | upper }}: {% endif %}"
        "{% if m.content is string %}{{ m.content }} {% else %}{% for part in m.content | "
        "selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}{% for part in m.content | "
        "selectattr('type', 'equalto', 'text') %}{% generation %}{{ part.text }} "
        "{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "<image>",
        ("<image>",),
        pieces=True,
    ),
    # Strips contents, names the assistant differently, puts a system's text into the user's turn.
    "model": Style(
        "<bos>{% if messages[0].role == 'system' %}{% set first = (messages[0].content if "
        "messages[0].content is string else messages[0].content[0].text) + '\n\n' %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}"
        "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if loop.first %}{{ first }}{% endif %}{% if m.content is string %}"
        "{{ m.content | trim }}{% else %}{% for part in m.content %}{% if part.type == 'image' %}"
        "<start_of_image><image><end_of_image>{% else %}{{ part.text | trim }}{% endif %}"
        "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<image>",
        (
            *("<bos>", "<start_of_turn>", "<end_of_turn>"),
            *("<start_of_image>", "<image>", "<end_of_image>"),
        ),
    ),
    # Names without marks; a blank behind the name unless an image follows.
    "utterance": Style(
        _turns(
            "{{ m.role | capitalize }}:{% if m.content is string or m.content[0].type != 'image' "
            "%} {% endif %}@<end_of_utterance>\n",
            "Assistant:",
            "<fake_token_around_image><image><fake_token_around_image>",
            before="<|im_start|>",
        ),
        "<image>",
        ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"),
    ),
    # Names without marks, and a mark behind answers alone.
    "sentence": Style(
        _turns(
            "{% if m.role == 'user' %}User: @\n\n{% elif m.role == 'assistant' %}Assistant: @"
            "<end_of_sentence>{% else %}@\n\n{% endif %}",
            "Assistant:",
            "<image>",
        ),
        "<image>",
        ("<image>", "<end_of_sentence>"),
    ),
}


def tokenizer(style: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens of one style."""
    made = STYLES[style]
    raw = Tokenizer(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if made.pieces:
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        raw.decoder = decoders.Metaspace()
        alphabet = [*map(chr, range(32, 127)), *"\n▁é…ù日本■"]
    else:
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", *made.marks],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator([_TEXT] * 4, trainer)
    raw.add_tokens([AddedToken(word, normalized=False) for word in made.words])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        additional_special_tokens=list(made.marks),
        extra_special_tokens={"image_token": made.image},
        padding_side="left",
    )


def processor(style: str) -> Any:
    """A processor with the template of one style; none of them needs torchvision."""
    common = {"tokenizer": tokenizer(style), "chat_template": STYLES[style].template}
    if "<|image_pad|>" in STYLES[style].marks:
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
