"""What the README promises: its commands, its code, the tests it names, its links."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from vrga_ext import Region, VRGAConfig, VRGAHandle

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def table(heading: str) -> list[list[str]]:
    """Rows of the table whose first column has that heading."""
    lines = README[README.index(f"| {heading} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_first_two_commands_run_the_demo_and_the_tests():
    demo, tests = code("bash")[:2]
    assert demo.strip().endswith("python -m vrga_ext demo")
    assert tests.strip().endswith("python -m pytest -n 2 --dist loadfile")
    assert demo.count("\n") == tests.count("\n") == 1  # a line each


def test_tests_of_the_traps_exist():
    """Each row of "What happens when ..." names tests that show it."""
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", written, re.M))
    rows = table("when")[2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(\w+)`", row[-1])
        assert named, row
        assert set(named) <= defined, row


@pytest.mark.parametrize("block", code("python"), ids=lambda block: block.splitlines()[0][:40])
def test_code_names_what_exists(block):
    tree = ast.parse(block)
    known = {field.name for field in dataclasses.fields(Region)} | {"grid"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "region":
                assert node.attr in known
            elif node.value.id == "handle":
                assert hasattr(VRGAHandle, node.attr) or node.attr == "regions"


def test_presets_are_described_as_they_are():
    rows = {row[0]: row[1:] for row in table("heads boosted")}
    configs = [VRGAConfig(), VRGAConfig.paper(), VRGAConfig.released()]
    assert ["static" in cell for cell in rows["heads boosted"]] == [
        config.gate == "static" for config in configs
    ]
    assert rows["fewest tokens kept"] == [str(config.focus_min_tokens) for config in configs]
    assert [cell.split(",")[0] for cell in rows["widened by"]] == [
        str(config.widen) for config in configs
    ]
    assert [cell == "yes" for cell in rows["border sinks suppressed"]] == [
        config.border_suppression for config in configs
    ]


def test_files_it_names_exist():
    named = re.findall(r"`((?:vrga_ext|csrc|tests|bench|docs)/[\w/.]*)`", README)
    named += re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []
