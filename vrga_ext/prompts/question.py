"""Where the question ends: at a given index, by the chat template, or at the last token."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from vrga_ext.region import Rule

NO_PROCESSOR = "no processor was given"
READ_BEFORE = "it was read before"
_NO_IDS = "only embeddings of the prompt were given"
_IMAGE_LAST = "the image comes after the question"
_NO_TEXT = "the last turn of the user has no text"
_NOT_FOUND = "no question was found where the processor's chat template writes one"
_SHOWN = 40  # characters of a prompt's end in a notice, and tokens that are decoded for it
UNKNOWN = chr(0x10FFFF)  # in place of an id that is not a token's


def as_run(ids: Sequence[int] | np.ndarray[Any, Any]) -> str:
    """Token ids as a string of one character each, so that Python's search finds runs of tokens."""
    known = np.minimum(np.asarray(ids, dtype=np.int64).astype(np.uint32), ord(UNKNOWN))
    return known.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, with the properties of its tokens that finding a question needs.

    A run is a sequence of token ids as a string of one character each: :func:`as_run`.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizer
        The tokenizer.
    marks : frozenset of str
        Tokens that were added to its vocabulary, as runs of one; ordinary text has none of them.
    """

    tokenizer: Any
    marks: frozenset[str]

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Tokens:
        added = getattr(tokenizer, "added_tokens_decoder", {})
        ids = [token for token, content in added.items() if str(content).strip()]
        return cls(tokenizer, frozenset(as_run(ids)))

    def run(self, text: str) -> str:
        return as_run(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, run: str) -> str:
        known = list(map(ord, run.replace(UNKNOWN, "")))
        return str(self.tokenizer.decode(known)) if known else ""

    def is_blank(self, token: str) -> bool:
        is_word = token in self.marks or token == UNKNOWN
        return not is_word and not self.text(token).strip()

    def trimmed_length(self, run: str) -> int:
        """Length of a run without the blanks at its end."""
        end = len(run)
        while end and self.is_blank(run[end - 1]):
            end -= 1
        return end

    def stripped(self, run: str) -> str:
        """A run without the blanks at its edges, which merge with those of a text."""
        run = run[: self.trimmed_length(run)]
        return run[len(run) - self.trimmed_length(run[::-1]) :]

    def opening_length(self, run: str) -> int:
        """Length of the marks and blanks at the start of a run."""
        words = (i for i, token in enumerate(run) if not self._is_mark_or_blank(token))
        return next(words, len(run))

    def _is_mark_or_blank(self, token: str) -> bool:
        return token in self.marks or self.is_blank(token)

    def has_mark(self, run: str) -> bool:
        return not self.marks.isdisjoint(run)


@dataclass(frozen=True)
class UserTurns:
    """Runs of tokens that a template writes around a user's text, without blanks at their edges.

    Where the template has switches, the sets hold the runs of all their settings.

    Attributes
    ----------
    openings : frozenset of str
        Before the text.
    first : frozenset of str
        Before a text that begins the prompt, where the run has no mark.
    prefaced : frozenset of str
        Before a text that follows a system message, where the run has no mark.
    lookalikes : frozenset of str
        Before a tool's text, where the run starts like an opening.
    closings : frozenset of str
        Between the text and that of the next turn.
    ends : frozenset of str
        After a text that ends the prompt, without a generation prompt.
    blank_ends : frozenset of str
        Those of ``ends`` that are blank, as characters, not tokens.
    tails : frozenset of str
        After a text that ends the prompt, with and without a generation prompt.
    other_tails : frozenset of str
        The same after the text of another role.
    between : str
        Between an image and the end of its turn, where no text follows the image.
    shown : tuple of str
        ``tails`` with their blanks, to be shown in a notice.
    """

    openings: frozenset[str]
    first: frozenset[str]
    prefaced: frozenset[str]
    lookalikes: frozenset[str]
    closings: frozenset[str]
    ends: frozenset[str]
    blank_ends: frozenset[str]
    tails: frozenset[str]
    other_tails: frozenset[str]
    between: str
    shown: tuple[str, ...]


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
    >>> QuestionFinder(problem=NO_PROCESSOR).find([7, 8, 9], [True, False, False], offset=0)
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

    :func:`vrga_ext.prompts.user_turns.question_finder` makes one of a processor.

    Parameters
    ----------
    tokens : Tokens, optional
        The tokenizer.
    turns : UserTurns, optional
        What its chat template writes around a user's text.
    problem : str
        Without the other two: why no question can be found in any prompt.

    Examples
    --------
    >>> end = QuestionFinder(problem=NO_PROCESSOR).find([7, 8, 9], [True, False, False], offset=0)
    >>> end.position, end.rule
    (2, 'last_token')
    """

    def __init__(
        self, tokens: Tokens | None = None, turns: UserTurns | None = None, problem: str = ""
    ) -> None:
        self.problem = problem
        if tokens is not None and turns is not None:
            self.tokens, self.turns = tokens, turns

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
        if self.problem:
            return QuestionEnd(last, "last_token", self.problem)
        tokens, run = self.tokens, as_run(ids)
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

    def _place(self, run: str, after_image: int) -> tuple[int, int] | None:
        """Earliest start of the user's last text, and its end; None if not found."""
        tokens, turns = self.tokens, self.turns
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
        turns, best = self.turns, None
        for opening in turns.openings:
            at = run.rfind(opening)
            while at >= 0 and any(run.startswith(tool, at) for tool in turns.lookalikes):
                at = run.rfind(opening, 0, at + len(opening) - 1)
            if at >= 0 and (best is None or at + len(opening) > best[0]):
                best = at + len(opening), self.tokens.has_mark(opening)
        if best is not None:
            return best
        start = self.tokens.opening_length(run)
        ends = [start + len(words) for words in turns.first if run.startswith(words, start)]
        ends += [at + len(words) for words in turns.prefaced if (at := run.find(words)) >= 0]
        return (min(ends), False) if ends else None

    def _is_no_text(self, run: str) -> bool:
        """Whether a run behind an image is the template's or the processor's, without a text."""
        tokens = self.tokens
        return tokens.stripped(run) == self.turns.between or tokens.opening_length(run) == len(run)

    def _seen(self, run: str) -> str:
        """How a prompt ends and how the template ends one, in words for a notice."""
        text = self.tokens.text
        shown = text(run[-_SHOWN:])
        wanted = (text(tail) for tail in self.turns.shown)
        endings = " or ".join(repr(tail) for tail in dict.fromkeys(wanted) if tail)
        return (
            f"the prompt ends with {'…' * (len(shown) > _SHOWN)}{shown[-_SHOWN:]!r}, "
            f"a question of the template with {endings or 'nothing of its own'}"
        )


def _longest_end(run: str, tails: Iterable[str]) -> int:
    return max(map(len, filter(run.endswith, tails)), default=0)


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


def question_ends(
    ids: Tensor,
    mask: Tensor,
    image: Tensor,
    past: int,
    question_end: str | Sequence[int] | int,
    finder: QuestionFinder,
    offsets: Sequence[int],
    copies: int,
) -> list[QuestionEnd]:
    """The question's end of every sequence.

    Parameters
    ----------
    ids : int64 [B, S]
        The last S tokens of the prompt.
    mask, image : bool [B, columns]
        Tokens of the prompt, and image tokens among them.
    past
        Positions that have been read already.
    question_end
        ``"auto"``, one position, or one per sample.
    finder
        See :meth:`QuestionFinder.find`.
    offsets
        Of each sequence: see :meth:`QuestionFinder.find`.
    copies
        Sequences per sample.
    """
    batch, columns = mask.shape
    if not isinstance(question_end, str):
        given = given_ends(question_end, mask[::copies], past)
        return [end for end in given for _ in range(copies)]
    first = columns - ids.shape[1]
    ends = []
    for row in range(batch):
        kept = mask[row, first:].nonzero().flatten()
        if not len(kept):
            ends.append(QuestionEnd(columns - 1, "last_token", "the row is nothing but padding"))
            continue
        end = finder.find(ids[row, kept].numpy(), image[row, first + kept].numpy(), offsets[row])
        position = first + int(kept[end.position])
        if position < past:
            ends.append(QuestionEnd(first + int(kept[-1]), "last_token", READ_BEFORE))
        else:
            ends.append(replace(end, position=position))
    return ends
