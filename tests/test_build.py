"""The build before its first compiler call: which torch, which sources, and what is packed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backend():
    return load("build_backend/vrga_build.py")


@pytest.fixture
def script(monkeypatch):
    """setup.py, as a build without switches sees it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    for switch in ("VRGA_EXT_CUDA", "CXX"):
        monkeypatch.delenv(switch, raising=False)
    return load("setup.py")


@pytest.fixture
def cuda_torch(script, monkeypatch):
    """A torch built for CUDA; ``find(toolkit)`` lets the search for a toolkit come to that."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    import cuda_toolkit

    def find(toolkit):
        monkeypatch.setattr(cuda_toolkit, "choose", lambda *flags: toolkit)

    find(cuda_toolkit.Toolkit("/usr/bin/nvcc", "/usr"))
    return find


def packages_of(prefix: Path) -> Path:
    folder = Path(sysconfig.get_path("purelib", vars={"base": str(prefix)}))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def put_torch(folder: Path, version: str) -> str:
    facts = folder / f"torch-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return str(folder)


# ---- the installed torch -----------------------------------------------------------------------


def test_nearest_torch_is_the_installed_one(backend, tmp_path):
    near, far = put_torch(tmp_path / "near", "2.13.0"), put_torch(tmp_path / "far", "2.11.0")
    assert backend.installed_torch([str(tmp_path), near, far]) == "2.13.0"
    assert backend.installed_torch([str(tmp_path)]) is None


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_activated_environment_is_looked_into(backend, tmp_path, monkeypatch, variable):
    packages = packages_of(tmp_path)
    monkeypatch.setenv(variable, str(tmp_path))
    assert str(packages) in backend.environment_paths()
    monkeypatch.setenv(variable, str(tmp_path / "gone"))
    assert str(packages) not in backend.environment_paths()


@pytest.mark.parametrize("seen", [True, False])
def test_system_packages_are_looked_into_where_the_environment_sees_them(
    backend, tmp_path, monkeypatch, seen
):
    system = tmp_path / "system"
    packages = packages_of(system)
    config = f"home = /usr/bin\ninclude-system-site-packages = {str(seen).lower()}\n"
    (tmp_path / "pyvenv.cfg").write_text(config)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(system))
    assert (str(packages) in backend.environment_paths()) is seen


@pytest.mark.parametrize(
    ("version", "asked"),
    [(None, ["torch>=2.11"]), ("2.11.0", []), ("2.13.0+cpu", []), ("3.0", [])],
)
def test_torch_is_asked_for_only_where_there_is_none(
    backend, tmp_path, monkeypatch, version, asked
):
    if version is not None:
        put_torch(tmp_path, version)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(backend, "environment_paths", lambda: [str(tmp_path)])
    assert backend._torch_requirement() == asked


@pytest.mark.parametrize("version", ["2.9.1", "2.10.0+cu130", "1.13"])
def test_old_torch_is_refused(backend, tmp_path, monkeypatch, version):
    monkeypatch.setattr(sys, "path", [put_torch(tmp_path, version)])
    with pytest.raises(RuntimeError, match=r"wanted torch >= 2.11, got the installed torch ") as at:
        backend._torch_requirement()
    assert version in str(at.value)


def test_environment_stands_behind_what_the_build_brought(backend, tmp_path, monkeypatch):
    isolated, both, installed = (str(tmp_path / name) for name in ("isolated", "both", "installed"))
    monkeypatch.setattr(sys, "path", [isolated, both])
    monkeypatch.setattr(backend, "environment_paths", lambda: [both, installed])
    backend._show_environment()
    assert sys.path == [isolated, both, installed]


# ---- what is compiled --------------------------------------------------------------------------


def files(pattern: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in ROOT.glob(f"csrc/**/{pattern}")]


def test_cuda_sources_only_with_cuda(script):
    without, with_cuda = script._operation_sources(False), script._operation_sources(True)
    assert "csrc/torch/binding.cpp" in without
    assert "csrc/cpu/isa/amx_bf16.cpp" in without
    assert not [path for path in without if "cuda" in path]
    assert with_cuda[: len(without)] == without
    assert set(with_cuda) | {"csrc/build_info.cpp"} == {*files("*.cpp"), *files("*.cu")}


@pytest.mark.parametrize("value", [None, "", "1"])
def test_kernels_are_built_where_they_can_be(script, cuda_torch, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("VRGA_EXT_CUDA", value)
    assert script._cuda_toolkit().home == "/usr"
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == script.DEFAULT_CUDA_ARCHITECTURES


def test_cuda_switched_off(script, cuda_torch, monkeypatch):
    monkeypatch.setenv("VRGA_EXT_CUDA", "0")
    assert script._cuda_toolkit() == "switched off by VRGA_EXT_CUDA=0 at build time"


def test_missing_cuda_is_said_and_refused_where_it_was_asked_for(script, cuda_torch, monkeypatch):
    cuda_torch("no nvcc")
    assert script._cuda_toolkit() == "no nvcc"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "which is not a CUDA build of torch" in script._cuda_toolkit()
    monkeypatch.setenv("VRGA_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match=r"VRGA_EXT_CUDA=1, but no CUDA kernels: built against"):
        script._extensions()


@pytest.fixture
def pybind11(monkeypatch):
    """What an isolated build brings, and the tests' environment need not have."""
    found = SimpleNamespace(get_include=lambda: "pybind11")
    monkeypatch.setitem(sys.modules, "pybind11", found)


def test_cpu_operations_are_built_where_cuda_cannot_be(script, pybind11, cuda_torch, capsys):
    cuda_torch("cuda_runtime.h: No such file or directory")
    operations, facts = script._extensions()[0]
    assert not [path for path in operations.sources if "cuda" in path]
    assert dict(facts.define_macros)["VRGA_CUDA_MISSING"] == f'"{script._cuda_toolkit()}"'
    said = "vrga_ext: building CPU operations only: cuda_runtime.h: No such file or directory\n"
    assert capsys.readouterr().err == said


def test_every_source_makes_the_build_anew(script, pybind11):
    """Without ninja nothing else looks into headers."""
    for extension in script._extensions()[0]:
        assert set(extension.depends) == {*files("*.cpp"), *files("*.cu"), *files("*.*h")}


@pytest.mark.parametrize("value", ["true", "2", "auto"])
def test_unknown_switch_is_refused(script, monkeypatch, value):
    monkeypatch.setenv("VRGA_EXT_CUDA", value)
    with pytest.raises(SystemExit, match=f"VRGA_EXT_CUDA: wanted 0, 1 or nothing, got '{value}'"):
        script._extensions()


def test_missing_compiler_is_named(script, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O0")
    with pytest.raises(SystemExit, match=r"wanted a C\+\+ compiler, got 'no-such-compiler -O0'"):
        script._extensions()
    monkeypatch.setenv("CXX", f"{sys.executable} -c")  # anything that can be run
    script._check_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"got 'c\+\+', which was not found"):
        script._extensions()


@pytest.mark.parametrize("command", ["egg_info", "dist_info", "sdist"])
def test_metadata_needs_no_compiler(script, monkeypatch, command):
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert script._extensions() == ([], {})


# ---- what is packed ----------------------------------------------------------------------------


def test_source_archive_holds_the_package_and_its_documents(tmp_path):
    copy = tmp_path / "copy"
    for name in ("build_backend", "csrc", "vrga_ext"):
        shutil.copytree(ROOT / name, copy / name)
    for path in [*ROOT.glob("*.*"), ROOT / "LICENSE", ROOT / ".clang-format"]:
        if path.is_file():
            shutil.copy(path, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_one.py").touch()
    pack = "import vrga_build; print(vrga_build.build_sdist('dist'))"
    environment = os.environ | {"PYTHONPATH": "build_backend"}
    packed = subprocess.run(
        [sys.executable, "-c", pack], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert packed.returncode == 0, packed.stderr
    with tarfile.open(copy / "dist" / packed.stdout.splitlines()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    documents = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    assert names >= documents | {"setup.py", "csrc/torch/binding.cpp", "csrc/cuda/launch.cu"}
    assert names >= {"build_backend/vrga_build.py", "build_backend/cuda_toolkit.py"}
    assert "vrga_ext/demo/model/model.safetensors" in names
    assert not [name for name in names if name.startswith(("tests", "bench", ".clang"))]
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
