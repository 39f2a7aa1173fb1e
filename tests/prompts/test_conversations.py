"""The question's end in conversations that hypothesis writes, against offsets of characters."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prompts.processors import STYLES, processor
from vrga_ext.prompts.question import QuestionFinder
from vrga_ext.prompts.user_turns import question_finder

repeatable = settings(max_examples=15, derandomize=True, deadline=None)
styles = pytest.mark.parametrize("style", STYLES)
IMAGE_TOKENS = 3  # per image, as a processor writes several
SENTINEL = "\u25a0 here \u25a0"
# A style that has no mark, or one in answers alone, cannot tell such words from its own.
UNMARKED = ("vicuna", "plain", "sentence")
SYSTEM_ANYWHERE = ("chatml", "switched", "silenced", "thinker", "observer", "context", "utterance")
words = st.sampled_from(
    [
        "How many birds",
        "x = y + 2;",
        "la maison",
        "(a) yes (b)",
        "7",
        "où?",
        "日本",
        "\n\n",
        "\n",
        " ",
    ]
)
marks = st.sampled_from(
    ["USER:", "ASSISTANT: ", "user\n", "assistant", "Assistant:", "[INST", "'s"]
)
ends = st.sampled_from(
    ["?", "!", ".", ":", "fence", "7", '"', ")", "\n", "  ", " \n", "…", "?\n\n"]
)


@functools.cache
def made(style: str) -> tuple[Any, QuestionFinder]:
    one = processor(style)
    return one, question_finder(one)


@dataclass
class Conversation:
    """Messages, how they are rendered, and what is added to that by hand."""

    messages: list[dict[str, Any]]
    question: int  # index of the user's last message
    how: dict[str, Any]
    begun: str
    image_last: bool


@st.composite
def conversations(draw, style: str) -> Conversation:
    roles = STYLES[style].roles
    pieces = words if style in UNMARKED else st.one_of(words, marks)

    def text() -> str:
        return "".join(["Say", " ", *draw(st.lists(pieces, max_size=4)), draw(ends)])

    def message(role: str, images: int = 0, late: bool = False) -> dict[str, Any]:
        if role == "tool" or (not images and draw(st.booleans())):
            return {"role": role, "content": text()}
        parts = [{"type": "image"}] * images
        words = {"type": "text", "text": text()}
        return {"role": role, "content": [words, *parts] if late else [*parts, words]}

    messages = []
    if "system" in roles and draw(st.booleans()):
        messages.append(message("system"))
    for _ in range(draw(st.integers(0, 2))):
        messages += [message("user", draw(st.integers(0, 2))), message("assistant")]
    image_last = draw(st.sampled_from([False, False, False, True]))
    question = len(messages)
    messages.append(message("user", draw(st.integers(int(image_last), 2)), image_last))
    after = [[], [], ["assistant"]]
    if "tool" in roles:
        after += [["assistant", "tool"], ["assistant", "tool", "assistant"]]
    if style in SYSTEM_ANYWHERE:
        after += [["system"], ["assistant", "system"]]
    messages += [message(role) for role in draw(st.sampled_from(after))]
    last = messages[-1]["role"]
    how = {name: draw(st.booleans()) for name in STYLES[style].switches if draw(st.booleans())}
    if last == "assistant" and draw(st.booleans()):
        how["continue_final_message"] = True
    else:
        how["add_generation_prompt"] = draw(st.booleans())
    asked = how.get("add_generation_prompt", False)
    begun = draw(st.sampled_from(["", "<think>\n", "<think>\nSo", "The", " No."])) if asked else ""
    return Conversation(messages, question, how, begun, image_last and style != "plain")


def is_answered(said: Conversation) -> bool:
    after = said.messages[said.question + 1 :]
    return not said.image_last and bool(after) and after[0]["role"] == "assistant"


def written(one: Any, said: Conversation) -> tuple[list[int], list[bool], int, int]:
    """Token ids, image tokens, and the tokens that hold the question's first and last letter."""
    content = said.messages[said.question]["content"]
    text = content if isinstance(content, str) else next(p["text"] for p in content if "text" in p)

    def rendered(question: str) -> str:
        parts = (
            question
            if isinstance(content, str)
            else [
                {"type": "text", "text": question} if "text" in part else part for part in content
            ]
        )
        turns = list(said.messages)
        turns[said.question] = turns[said.question] | {"content": parts}
        return one.apply_chat_template(turns, **said.how) + said.begun

    start = rendered(SENTINEL).index(SENTINEL)
    prompt = rendered(text)
    kept = text if prompt.startswith(text, start) else text.strip()  # a template may strip it
    assert prompt.startswith(kept, start)
    letters = (start + len(kept) - len(kept.lstrip()), start + len(kept.rstrip()) - 1)
    encoded = one.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    columns: list[list[int]] = [[], []]
    ids, is_image = [], []
    for token, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        image = token == one.image_token_id
        times = IMAGE_TOKENS if image else 1
        ids += [token] * times
        is_image += [image] * times
        for letter, found in zip(letters, columns, strict=True):
            if a <= letter < b:
                found.append(len(ids) - 1)
    return ids, is_image, columns[0][0], columns[1][-1]


@styles
@repeatable
@given(data=st.data())
def test_the_end_of_the_users_last_words_is_found(style, data):
    one, finder = made(style)
    said = data.draw(conversations(style))
    ids, is_image, _, end = written(one, said)
    found = finder.find(ids, is_image, offset=0)
    if said.image_last:
        assert (found.position, found.rule) == (len(ids) - 1, "last_token")
    else:
        assert (found.position, found.rule) == (end, "template")


@styles
@repeatable
@given(data=st.data())
def test_new_tokens_alone_are_enough(style, data):
    """Of a prompt on a kept cache only the tokens behind some column are there."""
    one, finder = made(style)
    said = data.draw(conversations(style).filter(lambda s: s.how.get("add_generation_prompt")))
    ids, is_image, start, end = written(one, said)
    first = data.draw(st.integers(0, start))
    found = finder.find(ids[first:], is_image[first:], offset=0)
    if said.image_last:
        assert (first + found.position, found.rule) == (len(ids) - 1, "last_token")
    else:
        assert (first + found.position, found.rule) == (end, "template")


@pytest.mark.parametrize("style", [style for style in STYLES if style not in UNMARKED])
@repeatable
@given(data=st.data())
def test_cut_answers_change_nothing(style, data):
    """Whatever is missing at the end of an answer, its end-of-turn token to begin with."""
    one, finder = made(style)
    said = data.draw(conversations(style).filter(is_answered))
    said.messages = said.messages[: said.question + 2]
    ids, is_image, _, end = written(one, said)
    whole = finder.find(ids, is_image, offset=0)
    said.messages = said.messages[: said.question + 1]
    said.how = said.how | {"add_generation_prompt": True}
    said.how.pop("continue_final_message", None)
    asked = len(written(one, said)[0])
    stop = data.draw(st.integers(min(asked, len(ids)), len(ids)))
    assert finder.find(ids[:stop], is_image[:stop], offset=0) == whole
    assert whole.position == end
