"""A real checkpoint on questions with boxes: three ways to ask, and VQA's soft score."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vrga_ext._arguments import Box
from vrga_ext.config import VRGAConfig
from vrga_ext.demo.answers import messages
from vrga_ext.demo.pictures import visible_part
from vrga_ext.reproduce.questions import BoxedQuestion
from vrga_ext.reproduce.tasks import Task

DIRECT, REASON, GUIDED = "direct", "reason", "region-guided"
# The question comes last, so that its last token is the question's own.
_PROMPTS = {
    DIRECT: "Answer with a single word or phrase. {question}",
    REASON: (
        "Think about the picture step by step, then write 'Answer:' and a single word or phrase. "
        "{question}"
    ),
    GUIDED: (
        "Look at the region of the picture from ({left:.2f}, {top:.2f}) to ({right:.2f}, "
        "{bottom:.2f}), as fractions of its width and height. Think about it step by step, then "
        "write 'Answer:' and a single word or phrase. {question}"
    ),
}
_SHORT_ANSWER = 24  # tokens; a direct answer is a word or phrase
_ARTICLES = {"a", "an", "the"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)}


def normalised(answer: str) -> str:
    """An answer as VQA compares it: lower case, no articles, no punctuation, numbers as digits.

    Apostrophes are dropped on both sides; VQA's own script restores those of contractions. Commas
    in numbers are dropped, decimal points stay.

    Examples
    --------
    >>> normalised("The two dogs, don't!"), normalised("1,000.50")
    ('2 dogs dont', '1000.50')
    """
    text = re.sub("['\u2019]", "", answer.lower())
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"\.(?!\d)|[^\w\s.]", " ", text)
    words = (_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES)
    return " ".join(words)


def soft_score(answer: str, humans: Sequence[str]) -> float:
    """VQA's accuracy: ``min(1, matches / 3)``, averaged over leaving out each human in turn.

    With a single human answer, whether it matches.

    Examples
    --------
    >>> humans = ["blink"] * 2 + ["blinks"] * 8
    >>> soft_score("Blink.", humans), soft_score("blinks", humans)
    (0.6, 1.0)
    """
    given = normalised(answer)
    same = [normalised(human) == given for human in humans]
    if len(same) == 1:
        return float(same[0])
    return float(np.mean([min(1.0, (sum(same) - match) / 3) for match in same]))


def final_answer(text: str) -> str:
    """What follows the last ``Answer:``; without one the last line that is not empty.

    Examples
    --------
    >>> final_answer("The card is white.\\nAnswer: blink"), final_answer("blink\\n")
    ('blink', 'blink')
    """
    marked = re.split(r"answer\s*:", text, flags=re.IGNORECASE)
    lines = [line.strip(" *\t") for line in marked[-1].splitlines() if line.strip(" *\t")]
    return (lines[0] if len(marked) > 1 else lines[-1]) if lines else ""


class BoxTask(Task):
    """Questions with boxes, asked one at a time.

    Direct answers, reasoning before the answer, and reasoning with the region named in the prompt:
    the prompt styles that the paper compares. An answer's RRAR is the mean over all of its tokens.
    If the image processor crops pictures to their centre, the task crops them first, and leaves
    out questions whose region lies outside.

    Parameters
    ----------
    processor
        The model's, with a chat template.
    questions
        From :func:`vrga_ext.reproduce.questions.load_questions`.
    max_new_tokens
        Longest answer with reasoning (tokens).
    """

    modes = (DIRECT, REASON, GUIDED)
    long = REASON
    axis = "prompt"
    drift_axis = "written token"
    caveat = (
        "Greedy decoding. The wording of the three prompts is this package's own, and its rules "
        "tell which words of an answer count; accuracy is VQA's soft score. The aim is the mean "
        "over all tokens of an answer."
    )
    gammas = ()
    config = VRGAConfig()

    def __init__(
        self, processor: Any, questions: Sequence[BoxedQuestion], max_new_tokens: int = 256
    ) -> None:
        self._processor = processor
        self._longest = max_new_tokens
        self._questions: list[BoxedQuestion] = []
        boxes: list[Box] = []
        sizes: list[tuple[int, int]] = []
        for question in questions:
            left, top, right, bottom = visible_part(processor, question.size)
            box = (
                max(question.box[0], left) - left,
                max(question.box[1], top) - top,
                min(question.box[2], right) - left,
                min(question.box[3], bottom) - top,
            )
            if box[0] < box[2] and box[1] < box[3]:
                self._questions.append(question)
                boxes.append(box)
                sizes.append((right - left, bottom - top))
        if not self._questions:
            raise ValueError("data: wanted at least one box inside its picture, got none")
        self.boxes, self.sizes = boxes, sizes
        lost = len(questions) - len(self._questions)
        self.about = f"{len(self._questions)} questions with boxes"
        if lost:
            self.about += f" ({lost} more left out: their region is outside what the model sees)"
        self.groups = np.zeros(len(self._questions), dtype=int)

    def batches(self, mode: str) -> Iterator[tuple[range, Any]]:
        for index, question in enumerate(self._questions):
            picture = question.picture()
            picture = picture.crop(visible_part(self._processor, picture.size))
            yield (
                range(index, index + 1),
                self._processor.apply_chat_template(
                    [messages(picture, self._text(index, mode))],
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=True,
                    return_tensors="pt",
                ),
            )

    def answer(self, model: Any, inputs: Any, mode: str) -> Tensor:
        longest = min(_SHORT_ANSWER, self._longest) if mode == DIRECT else self._longest
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=longest)
        return output[:, inputs["input_ids"].shape[1] :]

    def score(self, index: int, written: Tensor) -> float:
        text = self._processor.tokenizer.decode(written, skip_special_tokens=True)
        return soft_score(final_answer(text), self._questions[index].answers)

    def answer_tokens(self, written: Tensor) -> Tensor:
        """Every token."""
        return torch.ones(len(written), dtype=torch.bool)

    def drift_tokens(self, written: Tensor) -> Tensor:
        """Every token."""
        return self.answer_tokens(written)

    def _text(self, index: int, mode: str) -> str:
        left, top, right, bottom = self.boxes[index]
        width, height = self.sizes[index]
        return _PROMPTS[mode].format(
            question=self._questions[index].text,
            left=left / width,
            top=top / height,
            right=right / width,
            bottom=bottom / height,
        )
