"""The question's end, from prompts that real processors write."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.adapter.processors import TEMPLATES, processor, tokenizer
from vrga_ext.prompts.question import QuestionFinder

QUESTIONS = (
    "How many birds sit on the fence?",
    "Read the sign!",
    "x",
    "Which colour is the car behind the tree? Answer in one word.",
    "la maison rouge\nhow many",
    "12",
    "(a) yes (b) no:",
)


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request):
    made = processor(request.param)
    return made, QuestionFinder(made)


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
    row, rule = finder.find(ids, is_image, offset=0)
    assert rule == "template"
    # The row's token ends the question, and no more of the question follows.
    assert question.endswith(made.tokenizer.decode([ids[row]]).strip())
    last_image = max(i for i, image in enumerate(is_image) if image)
    assert made.tokenizer.decode(ids[last_image + 1 : row + 1]).strip().endswith(question)
    one_back, _ = finder.find(ids, is_image, offset=1)
    assert one_back == max(row - 1, last_image + 1)


def test_trailing_blanks_are_no_question(family):
    made, finder = family
    image = {"type": "image", "image": picture()}
    ids, is_image = prompt(made, [image, {"type": "text", "text": "Read the sign!  "}])
    row, rule = finder.find(ids, is_image, offset=0)
    assert rule == "template"
    assert made.tokenizer.decode([ids[row]]).strip().endswith("!")


def test_image_after_the_question_means_the_last_token(family):
    made, finder = family
    text, image = {"type": "text", "text": "Read the sign!"}, {"type": "image", "image": picture()}
    ids, is_image = prompt(made, [text, image])
    assert finder.find(ids, is_image, offset=0) == (len(ids) - 1, "last_token")


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
    row, rule = finder.find(ids, [token == made.image_token_id for token in ids], offset=0)
    assert rule == "template"
    assert "birds?".endswith(made.tokenizer.decode([ids[row]]).strip())


def test_prompt_of_another_template_means_the_last_token(family):
    _, finder = family
    ids = [9, 8, 7, 6, 5]
    assert finder.find(ids, [False, True, False, False, False], offset=0) == (4, "last_token")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (None, "no processor was given"),
        (tokenizer("vicuna"), "chat template could not be rendered"),
        (object(), "chat template could not be rendered"),
    ],
)
def test_without_a_template_there_is_a_reason(given, problem):
    finder = QuestionFinder(given)
    assert problem in finder.problem
    assert finder.find([1, 2, 3], [True, False, False], offset=0) == (2, "last_token")
