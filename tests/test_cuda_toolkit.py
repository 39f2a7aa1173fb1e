"""Which CUDA toolkit a build takes: wrappers of nvcc, and toolkits that cannot be used.

The toolkits are invented: a script that answers as nvcc does, a header, and a library.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

FLAGS = ["-std=c++20"], ["-std=c++20"]
MISSING = "cuda_runtime.h: No such file or directory"
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
# `nvcc --dryrun` prints its folders to stderr; $0 is not the toolkit where a link started it.
NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
  --dryrun)
    echo '#$ _SPACE_= ' >&2
    echo '#$ TOP={home}/bin/..' >&2
    echo '#$ INCLUDES="-I{home}/bin/../targets/x86_64-linux/include"  ' >&2
    echo '#$ LIBRARIES=  "-L{home}/bin/../targets/x86_64-linux/lib"' >&2 ;;
  *) {compile} ;;
esac
"""


@pytest.fixture
def finder(monkeypatch, tmp_path):
    """The module under test, where nothing of this machine's toolkit is seen."""
    path = Path(__file__).parents[1] / "build_backend" / "cuda_toolkit.py"
    spec = importlib.util.spec_from_file_location("cuda_toolkit_under_test", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "USUAL_PLACES", (str(tmp_path / "usual"),))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "what torch guessed")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    for name in ("CUDA_HOME", "CUDA_PATH", "PYTORCH_NVCC", "CXX", "CC", "CPLUS_INCLUDE_PATH"):
        monkeypatch.setenv(name, "")  # comes back to what it was, whatever the module sets
        monkeypatch.delenv(name)
    # The compilers may be in a folder that is left out because nvcc is in it, too.
    (tmp_path / "path").mkdir()
    for tool in ("c++", "sh"):
        (tmp_path / "path" / tool).symlink_to(shutil.which(tool))
    folders = [path for path in os.environ["PATH"].split(":") if not Path(path, "nvcc").exists()]
    monkeypatch.setenv("PATH", ":".join([str(tmp_path / "path"), *folders]))
    return module


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A library to link with."""
    path = tmp_path_factory.mktemp("runtime") / "libcudart.so"
    subprocess.run(["c++", "-shared", "-x", "c++", "/dev/null", "-o", str(path)], check=True)
    return path


@pytest.fixture
def toolkit(tmp_path, runtime):
    """``toolkit(name)`` makes one; ``headers`` and ``libraries`` are folders below it, or None."""

    def make(name, version="13.0", headers="include", libraries="lib64", compile=":"):
        home = tmp_path / name
        write_script(home / "bin" / "nvcc", NVCC.format(**locals()))
        if headers:
            (home / headers).mkdir(parents=True)
            (home / headers / "cuda_runtime.h").write_text("#define CUDART_VERSION 13000\n")
        if libraries:
            (home / libraries).mkdir(parents=True)
            (home / libraries / "libcudart.so").symlink_to(runtime)
        return home

    return make


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def put_on_path(tmp_path: Path, home: Path, how: str) -> None:
    """Let ``nvcc`` be found: itself, a link, a script, or a script that starts a script."""
    nvcc, real = tmp_path / "path" / "nvcc", home / "bin" / "nvcc"
    if how == "link":
        nvcc.symlink_to(real)
        return
    if how == "script of a script":
        inner = tmp_path / "inner" / "nvcc"
        write_script(inner, f'#!/bin/sh\nexec {shlex.quote(str(real))} "$@"\n')
        real = inner
    write_script(nvcc, f'#!/bin/sh\nexec {shlex.quote(str(real))} "$@"\n')


def assert_used(chosen, home: Path) -> None:
    assert not isinstance(chosen, str), chosen
    assert chosen.home == os.environ["CUDA_HOME"] == cpp_extension.CUDA_HOME == str(home)


def assert_not_used(chosen, *words: str) -> None:
    assert isinstance(chosen, str)
    assert "\n" not in chosen
    for word in words:
        assert word in chosen
    assert cpp_extension.CUDA_HOME == "what torch guessed"


@pytest.mark.parametrize("how", ["link", "script", "script of a script"])
def test_toolkit_behind_a_wrapper_is_found(finder, toolkit, tmp_path, how):
    home = toolkit("toolkit")
    put_on_path(tmp_path, home, how)
    assert_used(finder.choose(*FLAGS), home)


def test_folders_that_nvcc_names_are_used(finder, toolkit, tmp_path):
    """Conda and cross toolkits keep headers and libraries below targets/ only."""
    target = "targets/x86_64-linux"
    home = toolkit("toolkit", headers=f"{target}/include", libraries=f"{target}/lib")
    put_on_path(tmp_path, home, "script")
    chosen = finder.choose(*FLAGS)
    assert_used(chosen, home)
    assert chosen.include_dirs == (f"{home}/{target}/include",)
    assert chosen.library_dirs == (f"{home}/{target}/lib",)


def test_usual_place_without_nvcc_on_the_path(finder, toolkit):
    home = toolkit("usual")
    assert_used(finder.choose(*FLAGS), home)


def test_usual_place_serves_where_the_one_on_the_path_does_not(finder, toolkit, tmp_path):
    put_on_path(tmp_path, toolkit("bare", headers=None), "script")
    home = toolkit("usual")
    assert_used(finder.choose(*FLAGS), home)


def test_wheels_of_the_version_of_torch(finder, toolkit, tmp_path, monkeypatch):
    packages = tmp_path / "packages"
    monkeypatch.syspath_prepend(str(packages))
    home = toolkit("packages/nvidia/cu13", libraries="lib")
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    importlib.invalidate_caches()
    assert_used(finder.choose(*FLAGS), home)


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_toolkit_that_is_named_comes_first(finder, toolkit, tmp_path, monkeypatch, variable):
    put_on_path(tmp_path, toolkit("other"), "script")
    monkeypatch.setenv(variable, str(toolkit("named")))
    assert_used(finder.choose(*FLAGS), tmp_path / "named")


def test_toolkit_that_is_named_may_be_a_wrapper(finder, toolkit, tmp_path, monkeypatch):
    home = toolkit("toolkit")
    write_script(tmp_path / "named" / "bin" / "nvcc", f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "named"))
    assert_used(finder.choose(*FLAGS), home)


def test_no_other_is_taken_where_one_is_named(finder, toolkit, tmp_path, monkeypatch):
    toolkit("usual")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    assert_not_used(finder.choose(*FLAGS), f"CUDA_HOME={tmp_path}/gone has no bin/nvcc")
    assert os.environ["CUDA_HOME"] == str(tmp_path / "gone")
    monkeypatch.setenv("CUDA_HOME", str(toolkit("bare", headers=None)))
    assert_not_used(finder.choose(*FLAGS), f"{tmp_path}/bare/bin/nvcc cannot be used", MISSING)
    assert os.environ["CUDA_HOME"] == str(tmp_path / "bare")


def test_no_nvcc(finder):
    assert_not_used(finder.choose(*FLAGS), finder.NO_NVCC)
    assert "CUDA_HOME" not in os.environ


def test_missing_header_is_named(finder, toolkit, tmp_path):
    put_on_path(tmp_path, toolkit("bare", headers=None), "script")
    assert_not_used(finder.choose(*FLAGS), f"{tmp_path}/path/nvcc cannot be used: {MISSING}")


@pytest.mark.parametrize("variable", ["CPLUS_INCLUDE_PATH", "CFLAGS", "CXX"])
def test_header_may_come_from_the_environment(finder, toolkit, tmp_path, monkeypatch, variable):
    home = toolkit("bare", headers=None)
    put_on_path(tmp_path, home, "script")
    headers = toolkit("headers") / "include"
    value = {"CFLAGS": f"-I{headers}", "CXX": f"c++ -isystem {headers}"}.get(variable, str(headers))
    monkeypatch.setenv(variable, value)
    assert_used(finder.choose(*FLAGS), home)


def test_flags_of_the_build_count(finder, toolkit, tmp_path):
    home = toolkit("bare", headers=None)
    put_on_path(tmp_path, home, "script")
    headers = toolkit("headers") / "include"
    assert_used(finder.choose(["-std=c++20", f"-I{headers}"], FLAGS[1]), home)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"libraries": None}, ["cudart"]),
        ({"version": "12.6"}, ["wanted CUDA 13.0", "got release 12.6"]),
        ({"compile": "echo 'nvcc fatal   : Unsupported gpu architecture' >&2; exit 1"}, ["fatal"]),
        ({"compile": "exit 3"}, ["exit code 3"]),
    ],
    ids=["no library", "other version", "nvcc refuses", "nvcc fails silently"],
)
def test_toolkit_that_cannot_build_is_not_used(finder, toolkit, tmp_path, fault, words):
    put_on_path(tmp_path, toolkit("toolkit", **fault), "script")
    assert_not_used(finder.choose(*FLAGS), "path/nvcc cannot be used", *words)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\nexec /no/such/nvcc\n", "not found"),
        ("#!/no/such/shell\n", "No such file or directory"),
    ],
)
def test_wrapper_of_nothing_is_not_used(finder, tmp_path, script, words):
    write_script(tmp_path / "path" / "nvcc", script)
    assert_not_used(finder.choose(*FLAGS), "path/nvcc cannot be used", words)


def test_nvcc_that_names_no_folder_is_where_its_links_point(finder, toolkit, tmp_path):
    home = toolkit("toolkit")
    silent = '#!/bin/sh\n[ "$1" = --version ] && echo "release 13.0, V13.0.88"\nexit 0\n'
    write_script(home / "bin" / "nvcc", silent)
    put_on_path(tmp_path, home, "link")
    assert_used(finder.choose(*FLAGS), home)
