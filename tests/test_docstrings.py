"""Docstrings that ``help()`` and the API pages show: fields of types, arguments of operations."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import typing
from dataclasses import fields, is_dataclass

import pytest

import vrga_ext
from vrga_ext import analysis, ops, reference, viz
from vrga_ext.gate import Gate, GateKind

# A line of a section that names what it describes: `name`, `name : type`, `one, other : type`.
ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: : (\S.*))?$")


def sections(documented: object) -> dict[str, str]:
    """Title -> text of each section of a docstring in numpy style."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(documented) or "", flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section: str) -> dict[str, tuple[str, str]]:
    """Name -> type and description of each entry of a section."""
    found: dict[str, tuple[str, str]] = {}
    names: list[str] = []
    for line in section.splitlines():
        match = ENTRY.match(line)
        if match is not None:
            names = [name.lstrip("*") for name in match[1].split(", ")]
            found |= dict.fromkeys(names, (match[2] or "", ""))
        else:
            assert not line or line.startswith("    "), f"no entry: {line!r}"
            for name in names:
                kind, text = found[name]
                found[name] = kind, f"{text} {line.strip()}".strip()
    return found


def is_record(value: object) -> bool:
    named_tuple = isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields")
    return isinstance(value, type) and (is_dataclass(value) or named_tuple)


def public_records() -> list[type]:
    """Dataclasses and named tuples with public names, but for those of an engine's inside."""
    modules = [vrga_ext, analysis, viz]  # whatever they export, wherever it is from
    for found in pkgutil.walk_packages(vrga_ext.__path__, "vrga_ext."):
        parts = found.name.split(".")[1:]
        if parts[0] != "integrations" and not any(part.startswith("_") for part in parts):
            modules.append(importlib.import_module(found.name))
    records = {}
    for module in modules:
        exported = getattr(module, "__all__", ())
        for name in {*exported, *(name for name in vars(module) if not name.startswith("_"))}:
            value = getattr(module, name)
            if is_record(value) and (name in exported or value.__module__ == module.__name__):
                records[f"{value.__module__}.{value.__qualname__}"] = value
    return [records[name] for name in sorted(records)]


def field_names(record: type) -> list[str]:
    if is_dataclass(record):
        return [field.name for field in fields(record)]
    return list(record._fields)


RECORDS = public_records()


def test_the_types_that_people_meet_are_looked_at():
    wanted = {vrga_ext.Region, vrga_ext.Capture, vrga_ext.VRGAConfig, analysis.Drift}
    wanted |= {ops.DecodeResult, ops.RowResult, ops.SoftmaxResult}
    assert wanted <= set(RECORDS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__qualname__)
def test_fields_are_documented(record):
    """In `Attributes`; in `Parameters` where people make the type, so that fields are arguments."""
    found = sections(record)
    described = entries(found.get("Attributes", found.get("Parameters", "")))
    assert sorted(described) == sorted(field_names(record))
    for name, (kind, text) in described.items():
        assert kind, f"{name} has no type"
        assert text, f"{name} has no description"


@pytest.mark.parametrize("name", ["decode_attention", "row_statistics", "reweighted_softmax"])
def test_operations_are_documented_as_their_specification_is(name):
    operation, specification = getattr(ops, name), getattr(reference, name)
    found = sections(operation)
    described = entries(found["Parameters"])
    assert list(described) == list(inspect.signature(operation).parameters)
    assert all(kind and text for kind, text in described.values())
    for title in ("Parameters", "Returns"):
        assert found[title] == sections(specification)[title], title
    assert {"Raises", "Examples"} <= set(found)


@pytest.mark.parametrize("module", [ops, reference], ids=lambda module: module.__name__)
@pytest.mark.parametrize("name", ["decode_attention", "reweighted_softmax"])
def test_gate_is_one_of_two_words_everywhere(module, name):
    hints = typing.get_type_hints(getattr(module, name))
    assert hints["gate"] == GateKind
    assert typing.get_type_hints(vrga_ext.VRGAConfig)["gate"] == GateKind
    assert typing.get_type_hints(Gate)["gate"] == GateKind
    choices = ", ".join(f'"{kind}"' for kind in typing.get_args(GateKind))
    assert entries(sections(getattr(module, name))["Parameters"])["gate"][0] == f"{{{choices}}}"


@pytest.mark.parametrize("module", [vrga_ext, analysis], ids=lambda module: module.__name__)
def test_exported_types_have_an_example(module):
    for name in module.__all__:
        value = getattr(module, name)
        if is_record(value):
            assert ">>>" in sections(value).get("Examples", ""), name
