"""The runs of tokens that a chat template writes around the text of a user's turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vrga_ext.prompts.chat_template import (
    ChatTemplate,
    Place,
    Setting,
    Tokens,
    common_prefix,
    common_suffix,
)

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


@dataclass(frozen=True)
class UserTurns:
    """Runs of tokens that a template writes around a user's text, blanks at their edges left out.

    Where the template has a switch, those of all its settings.
    """

    openings: frozenset[str]  # before the text
    first: frozenset[str]  # before the text that begins a prompt, if without a mark of the template
    prefaced: frozenset[str]  # before the text that follows a system's, if without a mark
    lookalikes: frozenset[str]  # that begin like an opening and are a tool's
    closings: frozenset[str]  # between the text and what follows it, up to that one's text
    ends: frozenset[str]  # after the text that ends a prompt
    blank_ends: frozenset[str]  # the same where it is blank: its characters, not tokens
    tails: frozenset[str]  # the same or, if asked for an answer, with what that begins with
    other_tails: frozenset[str]  # the same after another role's text
    between: str  # between an image and what follows the turn, where no text does
    shown: tuple[str, ...]  # tails as they are written, to be shown


def user_turns(processor: Any, tokens: Tokens) -> UserTurns:
    """Find out what the chat template of a processor writes around a user's text.

    Raises
    ------
    Exception
        Any, from a template that renders no question.
    """
    template = ChatTemplate(processor, tokens)
    settings = [Setting(template, switches) for switches in template.settings()]

    def runs(written: Callable[[Setting], Iterable[str | None]]) -> set[str]:
        """What is written in any setting, blanks at the edges left out, if anything else is."""
        found = (run for setting in settings for run in written(setting) if run is not None)
        return {tokens.stripped(run) for run in found}

    def asked(setting: Setting) -> list[str | None]:
        return [setting.after(("user",), 0, True)]

    ends = runs(lambda setting: [setting.after(("user",), 0, False)]) - {""}
    tails = runs(lambda setting: setting.tails(("user",))) - {""}
    other_tails = runs(
        lambda setting: [run for roles in _OTHERS_LAST for run in setting.tails(roles)]
    ) - {""}
    begin = runs(lambda setting: [setting.after(("user",), -1, False)]) - {""}
    prefaced = runs(lambda setting: setting.all([_USER_AFTER_SYSTEM])) - {""}
    again = runs(lambda setting: setting.all([_NEXT_USER]))
    others = runs(lambda setting: [*setting.all(_ANSWERS), setting.after(("system",), -1, False)])

    marked = {run for run in begin | prefaced | again if tokens.has_mark(run)}
    marked |= set(filter(tokens.has_mark, runs(lambda setting: setting.all([_USER_AFTER_TOOL]))))
    parts = {tokens.stripped(common_suffix(pair)) for pair in itertools.combinations(marked, 2)}
    parts |= {  # an answer may lack its end
        tokens.stripped(run[len(end) :])
        for run in marked
        for end in other_tails | ends
        if run.startswith(end)
    }
    marked |= {
        part
        for part in filter(tokens.has_mark, parts)
        if not any(other.endswith(part) for other in others)
    }
    openings = {run for run in marked | again if not any(map(run.endswith, marked - {run}))}
    if "" in again:  # nothing is written where a user's next turn begins
        openings, begin, prefaced = set(), set(), set()

    closings = runs(lambda setting: [*setting.all(_ANSWERS), *asked(setting)]) - {""}
    closings |= set(filter(tokens.has_mark, runs(lambda setting: setting.all(_OTHERS))))
    closings |= {
        part
        for pair in itertools.combinations(closings, 2)
        if tokens.has_mark(part := tokens.stripped(common_prefix(pair)))
        and not any(end.startswith(part) for end in ends)  # a user may type what ends a turn
    }
    closings = {run for run in closings if not any(map(run.startswith, closings - {run}))}

    lookalikes = {
        run[run.index(opening) :]
        for run in runs(lambda setting: setting.all(_TOOLS))
        for opening in openings
        if opening in run and not run.endswith(opening)
    }
    characters = (setting.end_of_question() for setting in settings)
    written = (run for setting in settings for run in setting.tails(("user",)))
    return UserTurns(
        openings=frozenset(openings),
        first=frozenset(begin - marked),
        prefaced=frozenset(prefaced - marked),
        lookalikes=frozenset(lookalikes),
        closings=frozenset(closings),
        ends=frozenset(ends),
        blank_ends=frozenset(end for end in characters if end.isspace()),
        tails=frozenset(tails),
        other_tails=frozenset(other_tails),
        between=template.between_image_and_tail(tails),
        shown=tuple(dict.fromkeys(written)),
    )
