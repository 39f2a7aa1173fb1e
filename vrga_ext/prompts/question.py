"""Where the question ends: a given index, the chat template's tail, or the last prompt token."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vrga_ext.region import Rule

# Questions that share neither a last word nor a last character, so that what their rendered prompts
# share at the end is the template's.
_PROBES = (
    "What is shown here?",
    "Describe the scene.",
    "count to 7",
    "la voiture rouge!",
    "x = y + 2;",
)


@dataclass(frozen=True)
class QuestionEnd:
    """The question's last token in one prompt row, and the rule that found it."""

    position: int  # column of the prompt
    rule: Rule


class QuestionFinder:
    """Finds the question's last token in prompts written by a processor's chat template.

    The template is rendered for several dissimilar questions; the longest common token suffix is
    its tail, and the question ends just before that tail. If the image follows the question, the
    last prompt token is used, since the question has not seen the image.

    Parameters
    ----------
    processor
        A processor or tokenizer with a chat template, or None.
    """

    def __init__(self, processor: Any = None) -> None:
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._tails: list[_Tail] = []
        self.problem: str | None = None  # why there is no tail
        if processor is None:
            self.problem = "no processor was given"
            return
        try:
            self._tails = [_Tail.of(processor, prompted) for prompted in (True, False)]
        except (
            Exception
        ) as error:  # templates are user code: any failure means "no usable template"
            self.problem = f"the processor's chat template could not be rendered ({error})"

    def find(self, ids: Sequence[int], is_image: Sequence[bool], offset: int) -> tuple[int, Rule]:
        """Index and rule for one prompt row without padding.

        Parameters
        ----------
        ids
            Token ids of the row.
        is_image
            Which of them are image tokens.
        offset
            Tokens to step back from the question's end, where the template tells it.
        """
        last_image = max((i for i, image in enumerate(is_image) if image), default=-1)
        for tail in self._tails:
            cut = len(ids) - len(tail.tokens)
            if cut <= last_image + 1 or list(ids[cut:]) != tail.tokens:
                continue
            if last_image >= 0 and list(ids[last_image + 1 : cut]) == tail.between:
                break  # nothing but template between the image and the tail: the image comes last
            end = cut - 1
            while end > last_image + 1 and self._is_blank(ids[end]):
                end -= 1
            return max(end - offset, last_image + 1), "template"
        return len(ids) - 1, "last_token"

    def agrees_with(self, processor: Any) -> bool:
        """Whether a finder of another processor would find the same."""
        same = getattr(processor, "tokenizer", processor) is self._tokenizer
        return same or QuestionFinder(processor)._tails == self._tails != []

    def _is_blank(self, token: int) -> bool:
        return not self._tokenizer.decode([token]).strip()


@dataclass(frozen=True)
class _Tail:
    tokens: list[int]  # what the template writes after the question
    between: list[int]  # what it writes between an image and its tail when there is no question

    @classmethod
    def of(cls, processor: Any, prompted: bool) -> _Tail:
        tokenizer = getattr(processor, "tokenizer", processor)

        def tokens(*content: dict[str, str]) -> list[int]:
            text = processor.apply_chat_template(
                [{"role": "user", "content": list(content)}],
                tokenize=False,
                add_generation_prompt=prompted,
            )
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        image = {"type": "image"}
        rendered = [tokens(image, {"type": "text", "text": probe}) for probe in _PROBES]
        tail = _common_suffix(rendered)
        # Only the end of the prompt with the image last matters: what stands before its tail.
        image_last = [tokens({"type": "text", "text": probe}, image) for probe in _PROBES[:2]]
        ending = _common_suffix(image_last)
        marks = _image_marks(tokenizer, processor)
        between = ending[: len(ending) - len(tail)]
        after_mark = [index + 1 for index, token in enumerate(between) if token in marks]
        return cls(tail, between[after_mark[-1] :] if after_mark else between)


def _image_marks(tokenizer: Any, processor: Any) -> set[int]:
    """Ids a processor may use as the image placeholder of a rendered template."""
    marks = {getattr(processor, "image_token_id", None)}
    image_token = getattr(processor, "image_token", None)
    if isinstance(image_token, str):
        marks.add(tokenizer.convert_tokens_to_ids(image_token))
    return {mark for mark in marks if isinstance(mark, int)}


def _common_suffix(rows: list[list[int]]) -> list[int]:
    shortest = min(map(len, rows))
    length = 0
    while length < shortest and len({row[-1 - length] for row in rows}) == 1:
        length += 1
    return rows[0][len(rows[0]) - length :]


def normalise_question_end(question_end: Any) -> str | int | list[int]:
    """``"auto"``, an int, or a list of ints, from what a caller may pass for it.

    Raises
    ------
    ValueError
        Anything else.
    """
    wanted = "question_end: wanted 'auto', an index or one per row"
    if isinstance(question_end, str):
        if question_end != "auto":
            raise ValueError(f"{wanted}, got {question_end!r}")
        return question_end
    value = question_end.tolist() if hasattr(question_end, "tolist") else question_end
    try:
        if isinstance(value, Iterable):
            return [_index(item) for item in value]
        return _index(value)
    except TypeError as error:
        raise ValueError(f"{wanted}, got {question_end!r}") from error


def _index(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("a bool is no index")
    return operator.index(value)


def given_ends(question_end: int | Sequence[int], mask: Tensor, past: int) -> list[QuestionEnd]:
    """Check an explicit ``question_end`` against a prompt.

    Parameters
    ----------
    question_end
        One column, or one per row.
    mask : bool [B, columns]
        Tokens of the prompt; False is padding.
    past
        Columns that have been read already.

    Raises
    ------
    ValueError
        Not one per row, a column outside the prompt, or one that holds padding.
    """
    rows, columns = mask.shape
    ends = [question_end] * rows if isinstance(question_end, int) else list(question_end)
    if len(ends) != rows:
        raise ValueError(f"question_end: wanted one index or one per row ({rows}), got {len(ends)}")
    for row, end in enumerate(ends):
        if not past <= end < columns:
            raise ValueError(
                f"question_end: wanted an index in [{past}, {columns}) of the prompt, "
                f"got {end} (row {row})"
            )
        if not mask[row, end]:
            raise ValueError(
                f"question_end: wanted a token of row {row}, got {end}, which is padding"
            )
    return [QuestionEnd(end, "given") for end in ends]
