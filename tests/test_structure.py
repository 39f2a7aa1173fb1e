"""The package's floors: each imports from those below it, and only one engine transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vrga_ext

PACKAGE = Path(vrga_ext.__file__).parent
# Floors of the library from the ground up; demo and cli are what a person runs and see everything.
ALLOWED = {
    "_lazy": set(),
    "gate": set(),
    "config": {"gate"},
    "reference": {"gate"},
    "_checks": {"gate"},
    "_arguments": set(),
    "_sources": {"_build_info"},
    "_library": {"_build_info", "_checks", "_sources", "gate"},
    "ops": {"gate", "reference", "_checks", "_library"},
    "build_facts": {"ops", "_build_info", "_sources"},
    "selection": {"config"},
    "region": {"selection"},
    "files": set(),
    "captures": {"capture_files", "model_identity", "region", "selection"},
    "model_identity": set(),
    "warning": set(),
    "_stored": {"model_identity", "region", "selection"},
    "capture_files": {"_stored", "files", "region"},
    "geometry": {"_arguments", "geometry", "warning"},
    "guide": {"config"},
    "settings": {"config", "gate", "guide"},
    "schedule": set(),
    "plan": {"gate", "reference", "region", "schedule"},
    "prompts": {
        "config",
        "geometry",
        "guide",
        "prompts",
        "reference",
        "region",
        "schedule",
        "selection",
    },
    "steering": {"config", "prompts", "region", "selection"},
    "analysis": {
        "_arguments",
        "_lazy",
        "_stored",
        "analysis",
        "captures",
        "config",
        "files",
        "geometry",
        "model_identity",
        "region",
        "selection",
        "warning",
    },
    "viz": {
        "_arguments",
        "_lazy",
        "analysis",
        "captures",
        "files",
        "geometry",
        "region",
        "selection",
        "viz",
    },
    "integrations": {
        "_arguments",
        "analysis",
        "captures",
        "config",
        "guide",
        "integrations",
        "model_identity",
        "ops",
        "plan",
        "prompts",
        "reference",
        "region",
        "schedule",
        "selection",
        "settings",
        "steering",
        "warning",
    },
}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(floor: str) -> list[Path]:
    folder = PACKAGE / floor
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{floor}.py"]


@pytest.mark.parametrize("floor", ALLOWED)
def test_floor_imports_only_from_below(floor):
    paths = files_of(floor)
    assert paths
    modules = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    for path in paths:
        ours = {
            name.split(".")[1]
            for name in imports(path)
            if name.startswith("vrga_ext.") and name.count(".")
        }
        assert ours & modules <= ALLOWED[floor], path


def import_graph() -> dict[str, set[str]]:
    """Module -> the package's modules that it imports, wherever in the file the import stands.

    ``vrga_ext`` itself imports nothing here: it exports names that load on first use.
    """
    paths = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {name: imports(path) & modules.keys() for name, path in modules.items()}
    # `from package import module` reads no name of the package, only the module.
    for name, path in modules.items():
        for package, names in names_from(path).items():
            if all(f"{package}.{each}" in modules for each in names):
                graph[name].discard(package)
    graph["vrga_ext"] = set()
    return graph


def names_from(path: Path) -> dict[str, set[str]]:
    """Module -> the names that a file takes from it, if it takes none but by `from`."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.setdefault(node.module, set()).update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, set()).add("")  # the module itself
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, over any number of steps."""
    reached = {}
    for name in graph:
        found, waiting = set(), [name]
        while waiting:
            new = graph[waiting.pop()] - found
            found |= new
            waiting += new
        reached[name] = found
    groups = {
        tuple(sorted(other for other in found if name in reached[other]))
        for name, found in reached.items()
        if name in found
    }
    return [list(group) for group in sorted(groups)]


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set()}
    assert circles(graph) == [["a", "b", "c"]]


def test_no_modules_import_each_other():
    """Imports within functions and for the type checker included."""
    assert circles(import_graph()) == []


def test_only_its_integration_and_the_demo_import_transformers():
    importing = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "transformers" for name in imports(path))
    }
    assert importing <= {"integrations", "demo"}


def test_the_operations_import_without_transformers():
    code = "import sys, vrga_ext, vrga_ext.ops; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_public_names_stay_what_they_are():
    """A module of the same name would take the place of a function once it has been imported."""
    code = (
        "import vrga_ext\n"
        "first = {name: getattr(vrga_ext, name) for name in vrga_ext.__all__}\n"
        "assert all(getattr(vrga_ext, name) is value for name, value in first.items())\n"
        "assert vrga_ext.build_info() == vrga_ext.build_info()\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_submodules_load_on_first_use():
    """In an order in which each could only have been imported by its own use."""
    code = (
        "import sys, vrga_ext\n"
        "def loaded():\n"
        "    return {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "heavy = ['reference', 'ops', 'selection', 'region', 'captures', 'steering']\n"
        "light = ['viz', 'analysis', 'gate', 'geometry', 'prompts', 'integrations']\n"
        "for names, found in [(light, set()), (heavy, {'torch'})]:\n"
        "    for name in names:\n"
        "        assert name in dir(vrga_ext), name\n"
        "        assert getattr(vrga_ext, name) is sys.modules[f'vrga_ext.{name}'], name\n"
        "    assert loaded() == found, (names, loaded())\n"
        "assert vrga_ext.enable.__module__.startswith('vrga_ext.integrations.transformers')\n"
        "assert loaded() == {'torch', 'transformers'}, loaded()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_of_lazy_packages_are_there():
    for package in (vrga_ext, vrga_ext.analysis, vrga_ext.viz):
        for name in package.__all__:
            assert name in dir(package)
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            package.nothing  # noqa: B018
