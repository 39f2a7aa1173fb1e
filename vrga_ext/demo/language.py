"""The demo model's words: its tokenizer, the question, the answer, and how long the answer gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vrga_ext.demo.scenes import COLORS, FILLS, SHAPES, Kind, Placed, Scene

MODES = ("directly", "stepwise")
SPECIAL = (
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|unknown|>",
)
WORDS = (
    *("system", "user", "assistant", "what", "color", "is", "the", ":", ";", "so"),
    *MODES,
    *FILLS,
    *SHAPES,
    *COLORS,
    *"0123456789",
)
VOCABULARY = (*SPECIAL, *WORDS)

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


def question(mode: str, kind: Kind) -> str:
    """The user's words, for example ``stepwise: what color is the hollow star?``."""
    return f"{mode}: what color is the {kind.name}?"


def question_words(mode: str, kind: Kind) -> list[str]:
    """The question as the tokenizer splits it; the last word names the target."""
    return [mode, ":", "what", "color", "is", "the", *kind.name.split()]


def reply(kind: Kind, color: str) -> list[str]:
    """The words that end an answer: ``so hollow star green``."""
    return ["so", *kind.name.split(), color]


def step(target: Kind, other: Placed) -> list[str]:
    """One step of a long answer: the target again, then another object and its colour."""
    return [*target.name.split(), ":", *other.kind.name.split(), other.color, ";"]


def chain(rng: np.random.Generator, scene: Scene, target: Kind, steps: int) -> list[str]:
    """``steps`` steps over the objects other than the target, in a new order each round."""
    others = [placed for placed in scene.objects if placed.kind != target]
    words: list[str] = []
    for other in _rounds(rng, others, steps):
        words += step(target, other)
    return words


def _rounds(rng: np.random.Generator, others: Sequence[Placed], steps: int) -> Iterator[Placed]:
    left = steps
    while left > 0 and others:
        for i in rng.permutation(len(others))[:left]:
            yield others[i]
        left -= len(others)


def unknown_words(text: str) -> list[str]:
    """The words of ``text`` that the demo model has never seen, in order, each once."""
    marks = str.maketrans(dict.fromkeys("?.,!", " ") | {mark: f" {mark} " for mark in ":;"})
    words = text.lower().translate(marks).split()
    return list(dict.fromkeys(word for word in words if word not in WORDS))
