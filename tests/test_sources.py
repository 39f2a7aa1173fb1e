"""A clone whose C++ sources are not those that the operations were compiled from says so."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vrga_ext
from vrga_ext import _build_info, _sources

ROOT = Path(__file__).parents[1]
FILES = {"ops.cpp": "int a;\n", "cpu/row.h": "int b;\nint c;\n", "cuda/row.cu": ""}
NOTICE = "vrga_ext was compiled from other sources"
# The package's facts in Python, as they came before there were hashes.
FACTS = "torch_version = compiler = cuda_architectures = cuda_version = cuda_missing = ''\n"


def write(folder: Path, files: dict[str, str], newline: str = "\n") -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.replace("\n", newline).encode())
    return folder


def test_operations_are_compiled_from_the_sources_here():
    """If this fails, the other tests are of a mixture: install anew."""
    info = vrga_ext.build_info()
    assert info.sources_differ is None
    assert info.sources == _sources.source_hash(ROOT / "csrc")


# ---- the hash ----------------------------------------------------------------------------------


def test_hash_is_of_names_and_contents_alone(tmp_path):
    first = _sources.source_hash(write(tmp_path / "first", FILES))
    assert len(first) == 16
    backwards = dict(reversed(FILES.items()))
    assert _sources.source_hash(write(tmp_path / "a" / "second", backwards)) == first
    assert _sources.source_hash(write(tmp_path / "windows", FILES, "\r\n")) == first
    beside = {"ops.o": "object", "cpu/row.h.orig": "int z;", ".row.h.swp": "", "notes.md": "text"}
    assert _sources.source_hash(write(tmp_path / "built", FILES | beside)) == first


@pytest.mark.parametrize(
    "changed",
    [
        FILES | {"ops.cpp": "int  a;\n"},
        FILES | {"cpu/new.h": ""},
        {name: text for name, text in FILES.items() if name != "cuda/row.cu"},
        {("cpu/line.h" if name == "cpu/row.h" else name): text for name, text in FILES.items()},
        FILES | {"cpu/row.h": "int b;\n", "cuda/row.cu": "int c;\n"},
        FILES | {"ops.cpp": FILES["cpu/row.h"], "cpu/row.h": FILES["ops.cpp"]},
    ],
    ids=["space", "new file", "file gone", "renamed", "text moved", "exchanged"],
)
def test_hash_changes_with_the_sources(tmp_path, changed):
    before = _sources.source_hash(write(tmp_path / "before", FILES))
    assert _sources.source_hash(write(tmp_path / "after", changed)) != before


# ---- a clone -----------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path):
    """A clone with its own sources, and facts that say that they were compiled."""
    clone = tmp_path / "clone"
    ignore = shutil.ignore_patterns("_build_info.*", "__pycache__", "demo")
    shutil.copytree(ROOT / "vrga_ext", clone / "vrga_ext", symlinks=True, ignore=ignore)
    shutil.copytree(ROOT / "csrc", clone / "csrc")
    shutil.copy(ROOT / "setup.py", clone)
    installed = Path(importlib.util.find_spec("vrga_ext._ops").origin)
    if not (clone / "vrga_ext" / installed.name).exists():
        shutil.copy(installed, clone / "vrga_ext")
    know(clone, _sources.source_hash(clone / "csrc"))
    return clone


def know(clone: Path, built: str | None) -> None:
    """Let the operations of a clone have been compiled from sources with that hash."""
    line = "" if built is None else f"source_hash = {built!r}\n"
    (clone / "vrga_ext" / "_build_info.py").write_text(FACTS + line)


def run(folder: Path, code: str) -> str:
    """What a Python started in ``folder`` says."""
    environment = os.environ | {"PYTHONWARNINGS": "", "PYTHONPATH": str(folder)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, cwd=folder, env=environment, **pipes).stdout


USE = """
import vrga_ext
print("imported", flush=True)
import vrga_ext.ops, vrga_ext._library
vrga_ext.ops.simd_level()
print(vrga_ext.build_info())
"""
ASK = "from vrga_ext import _sources; print(_sources.difference(), end='')"  # needs no torch


def test_clone_with_the_sources_that_were_compiled_is_silent(clone):
    said = run(clone, USE)
    assert NOTICE not in said
    assert said.splitlines()[-1] == f"sources   {_sources.source_hash(clone / 'csrc')}"


@pytest.mark.parametrize("built", ["0123456789abcdef", None])
def test_clone_with_other_sources_says_so_once(clone, built):
    know(clone, built)
    *said, info = run(clone, USE).splitlines()
    (line,) = (index for index, text in enumerate(said) if NOTICE in text)
    assert line > said.index("imported")  # when something native is used, not before
    assert f"({built or 'of an unknown state'})" in said[line]
    assert said[line].endswith(f"run `pip install -e .` in {clone} again")
    assert info.startswith(f"sources   {NOTICE}")


def test_sources_that_were_edited_are_noticed(clone):
    header = clone / "csrc" / "core" / "gate.h"
    text = header.read_text()
    assert run(clone, ASK) == "None"
    header.write_text(text + "// more\n")
    assert NOTICE in run(clone, ASK)
    header.write_text(text)
    assert run(clone, ASK) == "None"


@pytest.mark.parametrize("part", ["csrc", "setup.py"])
def test_package_without_sources_is_silent(clone, part):
    """A folder ``csrc`` alone, beside an installed package, may be another package's."""
    know(clone, "0" * 16)
    assert NOTICE in run(clone, ASK)
    (clone / part).rename(clone / "elsewhere")
    assert run(clone, ASK) == "None"


def test_operations_installed_elsewhere_are_installed_anew_there(clone, tmp_path):
    """A clone that was never built uses the installed package's operations."""
    installed = tmp_path / "site" / "vrga_ext"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    for path in [*(clone / "vrga_ext").glob("_ops.*"), clone / "vrga_ext" / "_build_info.py"]:
        path.rename(installed / path.name)
    ask = f"import sys; sys.path.append({str(installed.parent)!r}); {ASK}"
    assert run(clone, ask) == "None"
    with (clone / "csrc" / "torch" / "binding.cpp").open("a") as source:
        source.write("\n")
    assert run(clone, ask).endswith(f"run `pip install .` in {clone} again")


def test_facts_of_another_installation_do_not_count(monkeypatch, tmp_path):
    here = _sources.source_hash(ROOT / "csrc")
    monkeypatch.setattr(_build_info, "source_hash", here, raising=False)
    assert _sources.compiled_hash() == here
    folders = {"_build_info": tmp_path, "_ops": ROOT / "vrga_ext"}
    monkeypatch.setattr(_sources, "_folder_of", folders.get)
    assert _sources.compiled_hash() is None
