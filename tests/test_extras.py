"""Each extra brings what its modules import, so that one alone is enough."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OWN = {"bench", "build_backend", "cuda_toolkit", "tests", "tools", "vrga_ext", "vrga_build"}
# What is collected with an extra: files are imported, and with them what they import.
COLLECTED = {
    "test": ("tests", "bench", "vrga_ext", "tools/demo_model"),
    "bench": ("bench", "vrga_ext"),
}
# Not at import: what else these modules are for.
USED = {"viz": ("vrga_ext",)}
# What is used where somebody has it, and said to be missing where not.
OPTIONAL = {"pandas", "pyarrow"}
SKIPPING = {"pytest.importorskip", "importlib.util.find_spec"}


def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distributions(extra: str) -> set[str]:
    """Lower-case names of what ``pip install ".[extra]"`` brings, if it is installed here."""
    facts = project()
    found: set[str] = set()
    waiting = [*facts["dependencies"], *facts["optional-dependencies"][extra]]
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name == facts["name"]:
            for other in requirement.extras:
                waiting += facts["optional-dependencies"][other]
            continue
        name = requirement.name.lower().replace("_", "-")
        if name not in found:
            found.add(name)
            try:
                waiting += importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                pytest.fail(f"{name}, of the extra {extra}, is not installed: pip install '.[dev]'")
    return found


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """First names of the modules that a file imports, within functions only if ``everywhere``."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in SKIPPING:
            named = [word for word in node.args[:1] if isinstance(word, ast.Constant)]
            yield from (word.value.partition(".")[0] for word in named)


@pytest.mark.parametrize("extra", ["test", "bench", "viz"])
def test_extra_brings_what_is_imported(extra):
    folders = COLLECTED.get(extra) or USED[extra]
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 20
    brought = distributions(extra)
    provided = importlib.metadata.packages_distributions()
    missing = {}
    for path in paths:
        # Tests skip without what they import in a function, and with [test] none shall.
        everywhere = extra in USED or path.is_relative_to(ROOT / "tests")
        for module in set(imports(path, everywhere)) - OWN - set(sys.stdlib_module_names):
            if extra in USED and module in OPTIONAL:
                continue
            names = {name.lower().replace("_", "-") for name in provided.get(module, [])}
            if not names & brought:
                missing[str(path.relative_to(ROOT))] = module
    assert missing == {}
