"""The question's end, from prompts that real processors write."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from tests.prompts.processors import STYLES, processor, tokenizer
from vrga_ext.prompts.question import question_ends
from vrga_ext.prompts.user_turns import question_finder

QUESTIONS = (
    "How many birds sit on the fence?",
    "Read the sign!",
    "x",
    "Which colour is the car behind the tree? Answer in one word.",
    "la maison rouge\nhow many",
    "12",
    "(a) yes (b) no:",
)


@pytest.fixture(scope="module", params=STYLES)
def family(request):
    made = processor(request.param)
    return made, question_finder(made)


def prompt(made, content, **kwargs) -> tuple[list[int], list[bool]]:
    """Token ids and image tokens of one user turn, rendered and tokenized by the processor."""
    messages = [{"role": "user", "content": content}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True} | kwargs
    ids = made.apply_chat_template(messages, **options)["input_ids"]
    ids = ids[0] if isinstance(ids[0], list) else ids
    return list(ids), [token == made.image_token_id for token in ids]


def picture() -> Image.Image:
    return Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("prompted", [True, False])
def test_row_is_the_last_token_of_the_question(family, question, prompted):
    made, finder = family
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": question}]
    ids, is_image = prompt(made, content, add_generation_prompt=prompted)
    assert sum(is_image) > 1
    end = finder.find(ids, is_image, offset=0)
    row, rule = end.position, end.rule
    assert rule == "template"
    # The row's token ends the question, and no more of the question follows.
    assert question.endswith(made.tokenizer.decode([ids[row]]).strip())
    last_image = max(i for i, image in enumerate(is_image) if image)
    assert made.tokenizer.decode(ids[last_image + 1 : row + 1]).strip().endswith(question)
    one_back = finder.find(ids, is_image, offset=1)
    assert one_back.position == max(row - 1, last_image + 1)


def test_trailing_blanks_are_no_question(family):
    made, finder = family
    image = {"type": "image", "image": picture()}
    ids, is_image = prompt(made, [image, {"type": "text", "text": "Read the sign!  "}])
    end = finder.find(ids, is_image, offset=0)
    row, rule = end.position, end.rule
    assert rule == "template"
    assert made.tokenizer.decode([ids[row]]).strip().endswith("!")


def test_image_after_the_question_means_the_last_token(family):
    made, finder = family
    text, image = {"type": "text", "text": "Read the sign!"}, {"type": "image", "image": picture()}
    ids, is_image = prompt(made, [text, image])
    found = finder.find(ids, is_image, offset=0)
    if made.chat_template == STYLES["plain"].template:  # which puts images first
        assert found.rule == "template"
    else:
        assert (found.position, found.rule) == (len(ids) - 1, "last_token")
        assert found.why == "the image comes after the question"


def test_second_turn(family):
    made, finder = family
    image = {"type": "image", "image": picture()}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "Read the sign!"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        {"role": "user", "content": [{"type": "text", "text": "How many birds?"}]},
    ]
    rendered = made.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids = rendered[0] if isinstance(rendered[0], list) else rendered
    end = finder.find(ids, [token == made.image_token_id for token in ids], offset=0)
    row, rule = end.position, end.rule
    assert rule == "template"
    assert "birds?".endswith(made.tokenizer.decode([ids[row]]).strip())


def test_prompt_of_another_template_means_the_last_token(family):
    _, finder = family
    words = [301, 300, 299, 298, 297]  # of no template
    found = finder.find(words, [False, True, False, False, False], offset=0)
    assert (found.position, found.rule) == (4, "last_token")
    assert "no question was found" in found.why


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (None, "no processor was given"),
        (tokenizer("vicuna"), "chat template could not be rendered"),
        (object(), "chat template could not be rendered"),
    ],
)
def test_without_a_template_there_is_a_reason(given, problem):
    finder = question_finder(given)
    assert problem in finder.problem
    found = finder.find([1, 2, 3], [True, False, False], offset=0)
    assert (found.position, found.rule, found.why) == (2, "last_token", finder.problem)


def test_what_was_seen_is_told():
    made = processor("switched")
    ids, is_image = prompt(made, [{"type": "image", "image": picture()}])
    first = is_image.index(True)  # left of it the template opens a turn, with a mark
    words = made.tokenizer("Read the sign! <|vision_end|> ANSWER:")["input_ids"]
    foreign, is_image = ids[: first + 1] + words, is_image[: first + 1] + [False] * len(words)
    found = question_finder(made).find(foreign, is_image, offset=0)
    assert found.rule == "last_token"
    assert found.seen.startswith("the prompt ends with …'")
    assert "Read the sign! <|vision_end|> ANSWER:'" in found.seen
    for tail in ("<think>\\n'", "<think>\\n\\n</think>\\n\\n'", "'<|im_end|>\\n'"):
        assert tail in found.seen


def test_embeddings_alone_tell_nothing(family):
    _, finder = family
    found = finder.find([-1] * 4, [True, False, False, False], offset=0)
    assert (found.position, found.rule) == (3, "last_token")
    assert "embeddings" in found.why


@pytest.mark.parametrize(
    ("style", "mark"),
    [
        ("chatml", "<|im_end|>"),
        ("chatml", "<|im_start|>"),
        ("switched", "<|im_end|>\n"),
        ("switched", "<think>"),
        ("switched", "</tool_response>"),
        ("model", "<end_of_turn>"),
        ("utterance", "<end_of_utterance>"),
        ("sentence", "<end_of_sentence>"),
        ("vicuna", "SYSTEM:"),
    ],
)
@pytest.mark.parametrize("answered", [False, True])
def test_users_may_type_what_the_template_writes(style, mark, answered):
    made = processor(style)
    question = f"What does {mark} mean here?"
    messages = [{"role": "user", "content": question}]
    if answered:
        messages.append({"role": "assistant", "content": "No."})
    text = made.apply_chat_template(messages, add_generation_prompt=not answered)
    ids = made.tokenizer(text)["input_ids"]
    found = question_finder(made).find(ids, [False] * len(ids), offset=0)
    assert found.rule == "template"
    assert made.tokenizer.decode(ids[: found.position + 1]).rstrip().endswith("mean here?")


def test_template_that_takes_strings_alone():
    made = tokenizer("chatml")
    made.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [
        {"role": "user", "content": "Read the sign!"},
        {"role": "assistant", "content": "No."},
    ]
    ids = made(made.apply_chat_template(messages, tokenize=False))["input_ids"]
    found = question_finder(made).find(ids, [False] * len(ids), offset=0)
    assert found.rule == "template"
    assert made.decode(ids[: found.position + 1]).endswith("Read the sign!")


def test_words_that_only_a_switch_writes_are_none_of_the_users():
    made = processor("observer")
    finder = question_finder(made)
    for switches in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        text = made.apply_chat_template(
            [{"role": "user", "content": "Read the sign!"}], add_generation_prompt=True, **switches
        )
        ids = made.tokenizer(text)["input_ids"]
        found = finder.find(ids, [False] * len(ids), offset=0)
        assert found.rule == "template"
        assert made.tokenizer.decode(ids[: found.position + 1]).endswith("\nRead the sign!")


def test_finders_are_pickled_and_copied(family):
    made, finder = family
    ids, is_image = prompt(made, [{"type": "text", "text": "Read the sign!"}])
    wanted = finder.find(ids, is_image, 0)
    assert wanted.rule == "template"
    for other in (copy.deepcopy(finder), pickle.loads(pickle.dumps(finder))):
        assert other.find(ids, is_image, 0) == wanted


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_are_looked_at_one_by_one(side):
    made = processor("switched")
    image = {"type": "image", "image": picture()}
    user = {"role": "user", "content": [image, {"type": "text", "text": "Read the sign!"}]}
    late = {"role": "user", "content": [{"type": "text", "text": "Read the sign!"}, image]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    rows = (
        ([user], {"add_generation_prompt": True}),
        ([user], {"add_generation_prompt": True, "enable_thinking": False}),
        ([user, answer], {}),
        ([user, answer], {"continue_final_message": True}),
        ([late, answer], {}),
    )
    ids = [made.tokenizer(made.apply_chat_template(row, **how))["input_ids"] for row, how in rows]
    width = max(map(len, ids))
    pads = [[made.tokenizer.pad_token_id] * (width - len(row)) for row in ids]
    joined = [
        pad + row if side == "left" else row + pad for row, pad in zip(ids, pads, strict=True)
    ]
    padded = torch.tensor(joined)
    is_text = padded != made.tokenizer.pad_token_id
    is_image = padded == made.image_token_id
    ends = question_ends(padded, is_text, is_image, 0, "auto", question_finder(made), [0] * 5, 1)
    assert [end.rule for end in ends] == ["template"] * 4 + ["last_token"]
    for row, end in enumerate(ends[:4]):
        before = made.tokenizer.decode(padded[row, : end.position + 1])
        assert before.endswith("Read the sign!")
    last = int(is_text[4].nonzero().max())
    assert ends[4].position == last
