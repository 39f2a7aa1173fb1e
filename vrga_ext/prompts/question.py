"""Where the question ends: at a given index, by the chat template, or at the last token."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vrga_ext.prompts.chat_template import UNKNOWN, Tokens, as_run
from vrga_ext.prompts.user_turns import user_turns
from vrga_ext.region import Rule

NO_PROCESSOR = "no processor was given"
READ_BEFORE = "it was read before"
_NO_IDS = "only embeddings of the prompt were given"
_IMAGE_LAST = "the image comes after the question"
_NO_TEXT = "the last turn of the user has no text"
_NOT_FOUND = "no question was found where the processor's chat template writes one"
_SHOWN = 40  # characters of a prompt's end in a notice, and tokens that are decoded for it


@dataclass(frozen=True)
class QuestionEnd:
    """The question's last token in one prompt, and the rule that found it.

    Attributes
    ----------
    position : int
        Index of the token in the prompt.
    rule : {"given", "template", "last_token"}
        Given by the caller, found by the chat template, or the prompt's last token.
    why : str
        Why the template did not tell, for ``"last_token"``; else empty.
    seen : str
        How this prompt ends and how the template ends one, where they differ; else empty.

    Examples
    --------
    >>> QuestionFinder(None).find([7, 8, 9], [True, False, False], offset=0)
    QuestionEnd(position=2, rule='last_token', why='no processor was given', seen='')
    """

    position: int
    rule: Rule
    why: str = ""
    seen: str = ""


class QuestionFinder:
    """Finds the last token of the last user turn in prompts written by a chat template.

    The finder renders the template for several conversations, with each of its switches on and off,
    and compares what it writes before (opening) and after (closing) a user's text. In a prompt the
    user's last text stands between the last opening and the first closing behind it. Nothing, the
    start of an answer, an answer, or turns of other roles may follow. If the image follows the
    question, the end is the prompt's last token, since the question has not seen the image.

    Parameters
    ----------
    processor
        A processor or tokenizer with a chat template, or None.
    """

    def __init__(self, processor: Any = None) -> None:
        self.problem: str | None = None  # why no prompt has a known end
        if processor is None:
            self.problem = NO_PROCESSOR
            return
        try:
            self._tokens = Tokens.from_tokenizer(getattr(processor, "tokenizer", processor))
            self._turns = user_turns(processor, self._tokens)
        except (
            Exception
        ) as error:  # templates are user code: any failure means "no usable template"
            self.problem = f"the processor's chat template could not be rendered ({error})"

    def find(
        self,
        ids: Sequence[int] | np.ndarray[Any, Any],
        is_image: Sequence[bool] | np.ndarray[Any, Any],
        offset: int,
    ) -> QuestionEnd:
        """The question's end in one prompt without padding.

        Parameters
        ----------
        ids : int [S]
            Token ids of the prompt.
        is_image : bool [S]
            Which of them are image tokens.
        offset : int
            Tokens to step back from an end that the template tells.

        Returns
        -------
        QuestionEnd
            Its ``position`` is an index into ``ids``.
        """
        last = len(ids) - 1
        if self.problem is not None:
            return QuestionEnd(last, "last_token", self.problem)
        tokens, run = self._tokens, as_run(ids)
        if run.endswith(UNKNOWN):
            return QuestionEnd(last, "last_token", _NO_IDS)
        images = np.flatnonzero(is_image)
        after_image = int(images[-1]) + 1 if len(images) else 0
        place = self._place(run, after_image)
        if place is None:
            return QuestionEnd(last, "last_token", _NOT_FOUND, self._seen(run))
        start, end = place
        text = run[max(start, after_image) : end]
        if after_image > start and self._is_no_text(text):
            return QuestionEnd(last, "last_token", _IMAGE_LAST)
        if not tokens.stripped(text):
            return QuestionEnd(last, "last_token", _NO_TEXT)
        return QuestionEnd(
            max(tokens.trimmed_length(run[:end]) - 1 - offset, after_image), "template"
        )

    def agrees_with(self, processor: Any) -> bool:
        """Whether a finder of another processor would find the same."""
        if self.problem is not None:
            return False
        same = getattr(processor, "tokenizer", processor) is self._tokens.tokenizer
        other = self if same else QuestionFinder(processor)
        return other.problem is None and other._turns == self._turns

    def _place(self, run: str, after_image: int) -> tuple[int, int] | None:
        """Earliest start of the user's last text, and its end; None if not found."""
        tokens, turns = self._tokens, self._turns
        bare = run[: tokens.trimmed_length(run)]
        tail = _longest_end(bare, turns.tails)
        opening = self._opening(run)
        start, is_marked = opening or (0, False)
        has_openings = bool(turns.openings)  # else user turns look like those of others
        if tail > _longest_end(bare, turns.other_tails) or (tail and not has_openings):
            return start, len(bare) - tail
        found = [at for words in turns.closings if (at := run.find(words, start)) >= 0]
        if found and has_openings:
            end = min(found)
            if opening is None and any(run.find(words, 0, end) >= 0 for words in turns.lookalikes):
                return None  # it closes a tool's text
            return start, end
        if has_openings and opening is None:
            return None
        end = len(bare) - _longest_end(bare, turns.ends)
        if start < end < len(bare):
            return start, end
        rest = bare[max(start, after_image) :]
        rest = rest[tokens.opening_length(rest) :]
        is_open = is_marked and not tokens.has_mark(rest)
        blank = tokens.text(run[len(bare) - 1 :])
        return (start, len(bare)) if is_open or blank.endswith(tuple(turns.blank_ends)) else None

    def _opening(self, run: str) -> tuple[int, bool] | None:
        """End of the last opening of a user's turn, and whether it contains a mark."""
        turns, best = self._turns, None
        for opening in turns.openings:
            at = run.rfind(opening)
            while at >= 0 and any(run.startswith(tool, at) for tool in turns.lookalikes):
                at = run.rfind(opening, 0, at + len(opening) - 1)
            if at >= 0 and (best is None or at + len(opening) > best[0]):
                best = at + len(opening), self._tokens.has_mark(opening)
        if best is not None:
            return best
        start = self._tokens.opening_length(run)
        ends = [start + len(words) for words in turns.first if run.startswith(words, start)]
        ends += [at + len(words) for words in turns.prefaced if (at := run.find(words)) >= 0]
        return (min(ends), False) if ends else None

    def _is_no_text(self, run: str) -> bool:
        """Whether a run behind an image is the template's or the processor's, without a text."""
        tokens = self._tokens
        return tokens.stripped(run) == self._turns.between or tokens.opening_length(run) == len(run)

    def _seen(self, run: str) -> str:
        """How a prompt ends and how the template ends one, in words for a notice."""
        text = self._tokens.text
        shown = text(run[-_SHOWN:])
        wanted = (text(tail) for tail in self._turns.shown)
        endings = " or ".join(repr(tail) for tail in dict.fromkeys(wanted) if tail)
        return (
            f"the prompt ends with {'…' * (len(shown) > _SHOWN)}{shown[-_SHOWN:]!r}, "
            f"a question of the template with {endings or 'nothing of its own'}"
        )


def _longest_end(run: str, tails: Iterable[str]) -> int:
    return max((len(tail) for tail in tails if run.endswith(tail)), default=0)


def normalise_question_end(question_end: Any) -> str | int | list[int]:
    """Check ``question_end`` from the caller.

    Parameters
    ----------
    question_end
        ``"auto"``, an integer, or a sequence, array or tensor of integers.

    Returns
    -------
    str, int or list of int
        The same in Python's own types.

    Raises
    ------
    ValueError
        It is something else.

    Examples
    --------
    >>> normalise_question_end(np.array([3, 4]))
    [3, 4]
    """
    wanted = "question_end: wanted 'auto', an index or one per sample"
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
        raise TypeError("wanted an index, got a bool")
    return operator.index(value)


def given_ends(question_end: int | Sequence[int], mask: Tensor, past: int) -> list[QuestionEnd]:
    """Check an explicit ``question_end`` against a batch of prompts.

    Parameters
    ----------
    question_end
        One position, or one per sample.
    mask : bool [B, S]
        Tokens of the prompts; False is padding.
    past
        Positions that have been read already.

    Returns
    -------
    list of B QuestionEnd

    Raises
    ------
    ValueError
        The number of positions is not B, or a position is outside the prompt or holds padding.

    Examples
    --------
    >>> import torch
    >>> given_ends(2, torch.tensor([[False, True, True]]), past=0)[0].position
    2
    """
    samples, length = mask.shape
    ends = [question_end] * samples if isinstance(question_end, int) else list(question_end)
    if len(ends) != samples:
        raise ValueError(
            f"question_end: wanted one index or one per sample ({samples}), got {len(ends)}"
        )
    for sample, end in enumerate(ends):
        if not past <= end < length:
            raise ValueError(
                f"question_end: wanted an index in [{past}, {length}) of the prompt, "
                f"got {end} (sample {sample})"
            )
        if not mask[sample, end]:
            raise ValueError(
                f"question_end: wanted a token of sample {sample}, got {end}, which is padding"
            )
    return [QuestionEnd(end, "given") for end in ends]
