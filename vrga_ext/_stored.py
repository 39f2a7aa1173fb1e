"""Values of files that anybody may have made: a check returns what it checked, or says why not."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from reprlib import repr as short
from typing import Any, NoReturn

from vrga_ext.region import HeadIndex
from vrga_ext.selection import Span

LARGEST = 2**31 - 1  # column, index or count


class Wrong(Exception):
    """What a file holds instead of what it should."""


def fail(name: str, wanted: Any, got: Any) -> NoReturn:
    raise Wrong(f"{name}: wanted {wanted}, got {short(got)}")


def json_object(name: str, text: str) -> dict[str, Any]:
    """An object of JSON whose names stand once each."""
    try:
        content = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise Wrong(f"{name}: wanted JSON, got {short(text)}: {error}") from error
    if not isinstance(content, dict):
        fail(name, "an object", content)
    return content


def check_names(where: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """The names that are there are those that are wanted."""
    found, wanted = set(found), set(wanted)
    for name in sorted(wanted - found):
        raise Wrong(f"{where}: wanted {name}, got none")
    for name in sorted(found - wanted):
        raise Wrong(f"{where}: wanted none but those of a capture, got {short(name)}")


def listed(name: str, value: Any, length: int | None = None) -> list[Any]:
    """A list, of ``length`` entries if that is given."""
    if not isinstance(value, list) or length not in (None, len(value)):
        fail(name, "a list" if length is None else f"a list of {length}", value)
    return value


def whole(name: str, value: Any, lowest: int, highest: int = LARGEST) -> int:
    """An integer within bounds; a truth value is none."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        fail(name, f"a whole number from {lowest} to {highest}", value)
    return value


def weight(name: str, value: Any) -> float:
    """A finite number of at least 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= sys.float_info.max:
        fail(name, "a finite number of at least 0", value)
    return float(value)


def layers_of(name: str, value: Any) -> tuple[int, ...]:
    """At least one layer, each once."""
    layers = tuple(whole(name, layer, 0) for layer in listed(name, value))
    if not layers or len(set(layers)) < len(layers):
        fail(name, "at least one layer, each once", value)
    return layers


def heads_of(name: str, value: Any, layers: tuple[int, ...], count: int) -> tuple[HeadIndex, ...]:
    """(layer, head) pairs of some layers with ``count`` heads each."""
    found = []
    for pair in listed(name, value):
        layer, head = listed(name, pair, 2)
        if whole(name, layer, 0) not in layers:
            fail(name, f"(layer, head) of layers {short([*layers])}", pair)
        found.append((layer, whole(name, head, 0, count - 1)))
    return tuple(found)


def spans_of(name: str, value: Any, count: int) -> tuple[Span, ...]:
    """Images within ``count`` image tokens, one after the other."""
    spans: list[Span] = []
    free = 0
    for content in listed(name, value):
        start, length, lead, grid = listed(name, content, 4)
        if grid is not None:
            rows, columns = listed(name, grid, 2)
            grid = whole(name, rows, 1), whole(name, columns, 1)
        span = Span(whole(name, start, free), whole(name, length, 0), whole(name, lead, 0), grid)
        free = span.start + span.length
        if free > count or (grid and span.lead + math.prod(grid) != span.length):
            fail(name, f"(start, length, lead, grid) within {count} image tokens", content)
        spans.append(span)
    return tuple(spans)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"a name that stands twice among {short([name for name, _ in pairs])}")
    return content
