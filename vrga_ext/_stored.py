"""Checks of values from a file: each returns the value, or raises InvalidFileError."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import fields
from reprlib import repr as short
from typing import Any, NoReturn

from vrga_ext.model_identity import ModelIdentity
from vrga_ext.region import HeadIndex
from vrga_ext.selection import Span

LARGEST = 2**31 - 1  # position, index or count


class InvalidFileError(Exception):
    """A file does not hold what it should; the message names what was wanted and what came."""


def fail(name: str, wanted: Any, got: Any) -> NoReturn:
    raise InvalidFileError(f"{name}: wanted {wanted}, got {short(got)}")


def parsed_object(name: str, text: str) -> dict[str, Any]:
    """A JSON object without duplicate names."""
    try:
        content = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{name}: wanted JSON, got {short(text)}: {error}") from error
    if not isinstance(content, dict):
        fail(name, "an object", content)
    return content


def check_names(where: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """``found`` has each of the wanted names and no other."""
    found, wanted = set(found), set(wanted)
    for name in sorted(wanted - found):
        raise InvalidFileError(f"{where}: wanted {name}, got none")
    for name in sorted(found - wanted):
        raise InvalidFileError(f"{where}: wanted only names of its format, got {short(name)}")


def checked_list(name: str, value: Any, length: int | None = None) -> list[Any]:
    """A list, with ``length`` entries if given."""
    if not isinstance(value, list) or length not in (None, len(value)):
        fail(name, "a list" if length is None else f"a list of {length}", value)
    return value


def checked_int(name: str, value: Any, lowest: int, highest: int = LARGEST) -> int:
    """An integer from ``lowest`` to ``highest``; not a bool."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        fail(name, f"a whole number from {lowest} to {highest}", value)
    return value


def checked_weight(name: str, value: Any) -> float:
    """A finite number of at least 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= sys.float_info.max:
        fail(name, "a finite number of at least 0", value)
    return float(value)


def checked_layers(name: str, value: Any) -> tuple[int, ...]:
    """At least one layer, each once."""
    layers = tuple(checked_int(name, layer, 0) for layer in checked_list(name, value))
    if not layers or len(set(layers)) < len(layers):
        fail(name, "at least one layer, each once", value)
    return layers


def checked_model(name: str, value: Any) -> ModelIdentity | None:
    """The model that a file is of; None where the file does not tell."""
    if value is None:
        return None
    if not isinstance(value, dict):
        fail(name, "an object", value)
    check_names(name, value, (field.name for field in fields(ModelIdentity)))
    if not isinstance(value["model_type"], str):
        fail(f"{name}.model_type", "a text", value["model_type"])
    for entry in ("name", "revision"):
        if not isinstance(value[entry], str | None):
            fail(f"{name}.{entry}", "a text, or null", value[entry])
    for entry in ("num_layers", "num_heads"):
        if value[entry] is not None:
            checked_int(f"{name}.{entry}", value[entry], 1)
    return ModelIdentity(**value)


def checked_heads(
    name: str, value: Any, layers: tuple[int, ...], count: int
) -> tuple[HeadIndex, ...]:
    """(layer, head) pairs; each of ``layers`` has ``count`` heads."""
    found = []
    for pair in checked_list(name, value):
        layer, head = checked_list(name, pair, 2)
        if checked_int(name, layer, 0) not in layers:
            fail(name, f"(layer, head) of layers {short([*layers])}", pair)
        found.append((layer, checked_int(name, head, 0, count - 1)))
    return tuple(found)


def checked_spans(name: str, value: Any, count: int) -> tuple[Span, ...]:
    """Images in ascending order within ``count`` image tokens."""
    spans: list[Span] = []
    free = 0
    for content in checked_list(name, value):
        start, length, lead, grid = checked_list(name, content, 4)
        if grid is not None:
            rows, columns = checked_list(name, grid, 2)
            grid = checked_int(name, rows, 1), checked_int(name, columns, 1)
        span = Span(
            checked_int(name, start, free),
            checked_int(name, length, 0),
            checked_int(name, lead, 0),
            grid,
        )
        free = span.start + span.length
        if free > count or (grid and span.lead + math.prod(grid) != span.length):
            fail(name, f"(start, length, lead, grid) within {count} image tokens", content)
        spans.append(span)
    return tuple(spans)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"duplicate names among {short([name for name, _ in pairs])}")
    return content
