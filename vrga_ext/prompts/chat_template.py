"""A processor's chat template: what it writes between the texts of turns, as runs of tokens.

The module renders conversations with several dissimilar texts in one turn after another. What their
tokens share is the template's, so that no special token and no model needs to be known by name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from vrga_ext.prompts.question import Tokens, as_run

# Texts that share neither a first or last word nor a first or last character.
PROBES = (
    "What is shown here?",
    "Describe the scene.",
    "count to 7",
    "la voiture rouge!",
    "x = y + 2;",
)
_NOT_SWITCHES = {"messages", "tools", "documents", "add_generation_prompt"}
_MOST_SETTINGS = 16  # combinations of switches; beyond it each switch is set alone

Switches = dict[str, bool]
Place = tuple[tuple[str, ...], int]  # roles that take turns, and the turn after whose text it is


class ChatTemplate:
    """A processor's chat template, rendered with texts in turns."""

    def __init__(self, processor: Any, tokens: Tokens) -> None:
        self.processor, self.tokens = processor, tokens
        self._runs: dict[str, str] = {}  # by text; most settings of switches change few of them
        self._plain = False  # contents are strings; else they are lists of parts
        self._plain = not self._takes_parts()

    def _takes_parts(self) -> bool:
        try:
            question = self.render([("user", PROBES[0])], True, {})
        except Exception:  # templates raise whatever they like
            return False
        return PROBES[0] in question and "'text'" not in question

    def render(self, turns: Sequence[tuple[str, str]], prompted: bool, switches: Switches) -> str:
        messages = []
        for role, text in turns:
            parts = text if self._plain or role == "tool" else [{"type": "text", "text": text}]
            messages.append({"role": role, "content": parts})
        return self._render(messages, prompted, switches)

    def run(self, text: str) -> str:
        if text not in self._runs:
            self._runs[text] = self.tokens.run(text)
        return self._runs[text]

    def _render(self, messages: list[Any], prompted: bool, switches: Switches) -> str:
        rendered = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompted, **switches
        )
        return str(rendered)

    def settings(self) -> list[Switches]:
        """Settings of the template's switches that make a difference, the default first."""
        turns = [("user", PROBES[0]), ("assistant", PROBES[1])]

        def texts(switches: Switches) -> tuple[str, str] | None:
            try:
                asked = self.render(turns[:1], True, switches)
                return asked, self.render(turns, False, switches)
            except Exception:  # the template refuses the conversation, or this setting
                return None

        plain = texts({})
        seen = {plain: Switches()}
        for name in sorted(self._variables()):
            choices = [{name: value} for value in (True, False)]
            old = list(seen.values())
            if 3 * len(old) <= _MOST_SETTINGS:
                choices = [setting | choice for choice in choices for setting in old]
            for setting in choices:
                rendered = texts(setting)
                if rendered is None or plain is None or rendered in seen:
                    continue
                printed = (str(value) for value in setting.values())
                if not any(word in rendered[0] and word not in plain[0] for word in printed):
                    seen[rendered] = setting
        return list(seen.values())

    def _variables(self) -> set[str]:
        """Names that the template expects from the caller."""
        holders = (self.processor, self.tokens.tokenizer)
        source = next((s for h in holders if (s := getattr(h, "chat_template", None))), None)
        if isinstance(source, Mapping):
            source = source.get("default")
        if not isinstance(source, str):
            return set()
        special = getattr(self.tokens.tokenizer, "special_tokens_map", {})
        return _variables(source) - _NOT_SWITCHES - set(special)

    def between_image_and_tail(self, tails: set[str]) -> str:
        """What stands between an image and a tail of the prompt, where no text follows it."""
        tokens = self.tokens
        marks = set(as_run(sorted(_image_marks(tokens.tokenizer, self.processor))))
        try:
            image = {"type": "image"}
            contents = [[{"type": "text", "text": probe}, image] for probe in PROBES[:2]]
            texts = [self._render([{"role": "user", "content": c}], True, {}) for c in contents]
        except Exception:  # a template for words alone
            return ""
        run = common_suffix([tokens.run(text) for text in texts])
        run = run[: tokens.trimmed_length(run)]
        tail = max((tail for tail in tails if run.endswith(tail)), key=len, default="")
        run = run[: len(run) - len(tail)]
        after = max((index + 1 for index, token in enumerate(run) if token in marks), default=None)
        return "" if after is None else tokens.stripped(run[after:])


class Setting:
    """A chat template with its switches set, which may append blanks to the texts."""

    def __init__(self, template: ChatTemplate, switches: Switches, after_text: str = "") -> None:
        self._template, self._switches, self._after_text = template, switches, after_text
        self._rendered: dict[tuple[tuple[str, ...], int, bool], tuple[list[str], list[str]]] = {}

    def all(self, places: Iterable[Place]) -> list[str]:
        found = [self.after(*place, False) for place in places]
        return [run for run in found if run is not None]

    def tails(self, roles: tuple[str, ...]) -> list[str]:
        """What follows the last turn's text, with and without a generation prompt."""
        found = [self.after(roles, len(roles) - 1, prompted) for prompted in (True, False)]
        return [run for run in found if run is not None]

    def after(self, roles: tuple[str, ...], turn: int, prompted: bool) -> str | None:
        """The template's tokens from one turn's text to the next one's or the prompt's end.

        Turn -1 is the start of the prompt. None where the template refuses the conversation or
        leaves a text out. For a single question with default switches it raises instead.
        """
        try:
            start, end = 0, None
            if turn >= 0:
                runs, _ = self._with_probes(roles, turn, prompted)
                start = len(runs[0]) - len(common_suffix(runs))
            if turn + 1 < len(roles):
                runs, _ = self._with_probes(roles, turn + 1, prompted)
                end = len(common_prefix(runs))
            return runs[0][start:end]
        except Exception:
            if roles == ("user",) and not self._switches:
                raise
            return None

    def end_of_question(self) -> str:
        """The characters, not tokens, that follow a question without a generation prompt."""
        try:
            _, texts = self._with_probes(("user",), 0, False)
        except Exception:
            return ""
        return common_suffix(texts)

    def _with_probes(
        self, roles: tuple[str, ...], turn: int, prompted: bool
    ) -> tuple[list[str], list[str]]:
        """A conversation's tokens and characters, with each of the probes in a turn."""
        key = roles, turn, prompted
        if key not in self._rendered:
            texts = []
            for probe in PROBES:
                contents = [PROBES[0] + self._after_text] * len(roles)
                contents[turn] = probe + self._after_text
                turns = list(zip(roles, contents, strict=True))
                texts.append(self._template.render(turns, prompted, self._switches))
            if len(set(texts)) < len(PROBES):
                raise ValueError(f"it leaves out a text of the role {roles[turn]!r}")
            self._rendered[key] = [self._template.run(text) for text in texts], texts
        return self._rendered[key]


@functools.lru_cache
def _variables(source: str) -> set[str]:
    """Names that a template expects from the caller, without functions."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    tree = environment.parse(source)
    functions = (call.node for call in tree.find_all(nodes.Call))
    called = {node.name for node in functions if isinstance(node, nodes.Name)}
    return meta.find_undeclared_variables(tree) - called - set(environment.globals)


class _Generation(Extension):
    """The block around an assistant's text that transformers adds to the template language."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _image_marks(tokenizer: Any, processor: Any) -> set[int]:
    """Ids a processor may use as the image placeholder of a rendered template."""
    marks = {getattr(processor, "image_token_id", None)}
    image_token = getattr(processor, "image_token", None)
    if isinstance(image_token, str):
        marks.add(tokenizer.convert_tokens_to_ids(image_token))
    return {mark for mark in marks if isinstance(mark, int)}


def common_prefix(runs: Sequence[str]) -> str:
    first, last = min(runs), max(runs)  # of strings in order, these two differ the earliest
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(token for token, _ in same)


def common_suffix(runs: Sequence[str]) -> str:
    return common_prefix([run[::-1] for run in runs])[::-1]
