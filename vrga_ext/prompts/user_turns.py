"""Learns from a processor's chat template what it writes around the text of a user's turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from vrga_ext.prompts.chat_template import (
    ChatTemplate,
    Place,
    Setting,
    common_prefix,
    common_suffix,
)
from vrga_ext.prompts.question import NO_PROCESSOR, QuestionFinder, Tokens, UserTurns

_NEXT_USER: Place = ("user", "assistant", "user"), 1
_USER_AFTER_TOOL: Place = ("user", "assistant", "tool", "user"), 2
_USER_AFTER_SYSTEM: Place = ("system", "user"), 0
_ANSWERS: tuple[Place, ...] = ((("user", "assistant"), 0), (("user", "assistant", "user"), 0))
_OTHERS: tuple[Place, ...] = ((("user", "system"), 0), (("user", "tool"), 0))
_TOOLS: tuple[Place, ...] = (
    (("user", "assistant", "tool"), 1),
    (("user", "assistant", "tool", "tool"), 2),
    (("user", "tool"), 0),
)
_OTHERS_LAST = (("user", "assistant"), ("user", "assistant", "tool"), ("user", "system"))


def question_finder(processor: Any = None) -> QuestionFinder:
    """What finds the question's end in the prompts of a processor.

    Parameters
    ----------
    processor
        A processor or tokenizer with a chat template, or None.

    Examples
    --------
    >>> question_finder(None).problem
    'no processor was given'
    """
    if processor is None:
        return QuestionFinder(problem=NO_PROCESSOR)
    try:
        tokens = Tokens.from_tokenizer(getattr(processor, "tokenizer", processor))
        return QuestionFinder(tokens, user_turns(processor, tokens))
    except Exception as error:  # templates are user code: any failure makes them unusable
        problem = f"the processor's chat template could not be rendered ({error})"
        return QuestionFinder(problem=problem)


def finds_the_same(finder: QuestionFinder, processor: Any) -> bool:
    """Whether the finder of a processor finds what ``finder`` does."""
    if finder.problem:
        return False
    if getattr(processor, "tokenizer", processor) is finder.tokens.tokenizer:
        return True
    other = question_finder(processor)
    return not other.problem and other.turns == finder.turns


def user_turns(processor: Any, tokens: Tokens) -> UserTurns:
    """Find what the chat template of a processor writes around a user's text.

    Raises
    ------
    Exception
        Of any type, from a template that does not render a question.
    """
    template = ChatTemplate(processor, tokens)
    every_switch = template.settings()
    settings = [Setting(template, switches) for switches in every_switch]

    def runs(written: Callable[[Setting], Iterable[str | None]]) -> set[str]:
        """What the template writes in any setting, without blanks at the edges."""
        found = (run for setting in settings for run in written(setting) if run is not None)
        return {tokens.stripped(run) for run in found}

    def by_default(places: Iterable[Place]) -> set[str]:
        return set(map(tokens.stripped, settings[0].all(places)))

    first = runs(lambda setting: [setting.after(("user",), -1, False)]) - {""}
    prefaced = by_default([_USER_AFTER_SYSTEM]) - {""}
    again = runs(lambda setting: setting.all([_NEXT_USER]))
    others = runs(lambda setting: [*setting.all(_ANSWERS), setting.after(("system",), -1, False)])
    shown = [run for setting in settings for run in setting.tails(("user",))]
    tails = runs(lambda setting: setting.tails(("user",))) - {""}
    if any(run[0] not in tokens.marks for run in tails):  # it may merge with a blank before it
        settings += [Setting(template, switches, after_text=" ") for switches in every_switch]
        tails = runs(lambda setting: setting.tails(("user",))) - {""}
    ends = runs(lambda setting: [setting.after(("user",), 0, False)]) - {""}
    other_tails = runs(
        lambda setting: [run for roles in _OTHERS_LAST for run in setting.tails(roles)]
    ) - {""}

    before = first | prefaced | again
    marked = set(filter(tokens.has_mark, before | by_default([_USER_AFTER_TOOL])))
    openings = _openings(tokens, marked, other_tails | ends, others) | (again - marked)
    if "" in again:  # the template writes nothing before a user's next turn
        openings, first, prefaced = set(), set(), set()
    asked = runs(lambda setting: [setting.after(("user",), 0, True)])
    closings = (asked | runs(lambda setting: setting.all(_ANSWERS))) - {""}
    closings |= set(filter(tokens.has_mark, runs(lambda setting: setting.all(_OTHERS))))
    lookalikes = {
        run[run.index(opening) :]
        for run in by_default(_TOOLS)
        for opening in openings
        if opening in run and not run.endswith(opening)
    }
    characters = (setting.end_of_question() for setting in settings)
    return UserTurns(
        openings=frozenset(openings),
        first=frozenset(first - marked),
        prefaced=frozenset(prefaced - marked),
        lookalikes=frozenset(lookalikes),
        closings=frozenset(_closings(tokens, closings, ends)),
        ends=frozenset(ends),
        blank_ends=frozenset(end for end in characters if end.isspace()),
        tails=frozenset(tails),
        other_tails=frozenset(other_tails),
        between=template.between_image_and_tail(tails),
        shown=tuple(dict.fromkeys(shown)),
    )


def _openings(tokens: Tokens, whole: set[str], ends: set[str], others: set[str]) -> set[str]:
    """The shortest runs that open a user's turn, from what the template writes before several.

    These runs share their last part; what precedes it belongs to the turn before. An answer that
    was cut lacks the end of its turn, so the part behind one of ``ends`` is an opening as well.
    """
    parts = {common_suffix(pair) for pair in itertools.combinations(whole, 2)}
    parts |= {run[len(end) :] for run in whole for end in ends if run.startswith(end)}
    parts = set(filter(tokens.has_mark, map(tokens.stripped, parts)))
    found = whole | {part for part in parts if not any(run.endswith(part) for run in others)}
    return {run for run in found if not any(map(run.endswith, found - {run}))}


def _closings(tokens: Tokens, whole: set[str], ends: set[str]) -> set[str]:
    """The shortest runs that close a user's turn and start another one."""
    parts = {common_prefix(pair) for pair in itertools.combinations(whole, 2)}
    parts = set(filter(tokens.has_mark, map(tokens.stripped, parts)))
    # A part that is just the end of a turn may be a word of the user as well.
    found = whole | {part for part in parts if not any(end.startswith(part) for end in ends)}
    return {run for run in found if not any(map(run.startswith, found - {run}))}
