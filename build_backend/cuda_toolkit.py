"""The CUDA toolkit that a build can use: found behind wrappers of nvcc, and tried before the build.

Torch takes the folder above ``nvcc`` for the toolkit. Where ``nvcc`` is a script or a link that
starts another one, there are no headers in that folder, which shows after many minutes of
compiling. Here nvcc itself is asked for its folders, and a few lines are compiled with the flags
of the build.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

USUAL_PLACES = ("/usr/local/cuda", "/usr/lib/cuda", "/usr/lib/nvidia-cuda-toolkit", "/opt/cuda")
NO_NVCC = "no nvcc was found at build time; install the CUDA toolkit or set CUDA_HOME"

HOST_PROBE = '#include <cuda_runtime.h>\nextern "C" int probe() { return CUDART_VERSION; }\n'
DEVICE_PROBE = "#include <cuda_runtime.h>\n__global__ void probe(int* x) { *x = threadIdx.x; }\n"


@dataclass(frozen=True)
class Toolkit:
    """Folders of a CUDA toolkit, as its nvcc tells them."""

    nvcc: str  # as it was found, maybe a wrapper
    home: str  # what torch calls CUDA_HOME: it has bin/nvcc
    include_dirs: tuple[str, ...] = ()
    library_dirs: tuple[str, ...] = ()


def choose(cxx_flags: Sequence[str], nvcc_flags: Sequence[str]) -> Toolkit | str:
    """Find a toolkit that compiles with these flags, and make it torch's ``CUDA_HOME``.

    ``CUDA_HOME`` or ``CUDA_PATH``, where set, names the only one that is tried.

    Returns
    -------
    Toolkit or str
        The first toolkit that can be used, or in one line why the first that was found cannot.
    """
    obstacles = []
    for nvcc in _nvccs():
        toolkit = ask(nvcc)
        obstacle = toolkit if isinstance(toolkit, str) else _try(toolkit, cxx_flags, nvcc_flags)
        if isinstance(toolkit, Toolkit) and not obstacle:
            return toolkit
        obstacles.append(f"the toolkit of {nvcc} cannot be used: {obstacle}")
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nothing = f"CUDA_HOME={named} has no bin/nvcc" if named else NO_NVCC
    return obstacles[0] if obstacles else nothing


def _nvccs() -> Iterator[str]:
    """Every nvcc worth trying, each once."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        found = [os.path.join(named, "bin", "nvcc")]
    else:
        found = [path for path in [shutil.which("nvcc")] if path]
        found += [os.path.join(place, "bin", "nvcc") for place in (*USUAL_PLACES, *_wheels())]
    seen = set()
    for nvcc in found:
        if os.access(nvcc, os.X_OK) and os.path.realpath(nvcc) not in seen:
            seen.add(os.path.realpath(nvcc))
            yield nvcc


def _wheels() -> list[str]:
    """Where NVIDIA's wheels for torch's version of CUDA lie, some of which hold an nvcc."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    major = (torch.version.cuda or "").partition(".")[0]
    return [os.path.join(folder, f"cu{major}") for folder in folders or ()]


def ask(nvcc: str) -> Toolkit | str:
    """The folders that ``nvcc`` uses, whichever wrappers it is behind; or what it complains of.

    An nvcc that runs but names no folder is taken for what its links point to.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.touch()
        result = _run([nvcc, "--dryrun", "-c", str(source), "-o", f"{source}.o"])
    if isinstance(result, str):
        return result
    told = dict(re.findall(r"^#\$ (\w+)=[ \t]*(.*?)[ \t]*$", result.stderr, re.M))
    home = os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))
    if "TOP" in told:
        top = os.path.normpath(told["TOP"])
        home = top if os.path.exists(os.path.join(top, "bin", "nvcc")) else home

    def folders(name: str, flag: str) -> tuple[str, ...]:
        words = (word for word in shlex.split(told.get(name, "")) if word.startswith(flag))
        paths = (os.path.normpath(word[len(flag) :]) for word in words)
        return tuple(path for path in paths if path != "/usr/include")  # gcc wants that last

    return Toolkit(nvcc, home, folders("INCLUDES", "-I"), folders("LIBRARIES", "-L"))


def _try(toolkit: Toolkit, cxx_flags: Sequence[str], nvcc_flags: Sequence[str]) -> str:
    """Why nothing can be built with a toolkit; empty if it can, and then torch uses it."""
    from torch.utils import cpp_extension

    before = os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME
    os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = toolkit.home  # read when torch is imported
    obstacle = _version_obstacle(toolkit) or _compile(toolkit, cxx_flags, nvcc_flags)
    if obstacle:
        os.environ.pop("CUDA_HOME")
        if before[0] is not None:
            os.environ["CUDA_HOME"] = before[0]
        cpp_extension.CUDA_HOME = before[1]
    return obstacle


def _version_obstacle(toolkit: Toolkit) -> str:
    """Torch refuses a toolkit of another major version than its own."""
    result = _run([_nvcc_of(toolkit), "--version"])
    if isinstance(result, str):
        return result
    version = re.search(r"release (\d+)\.\d+", result.stdout)
    wanted = str(torch.version.cuda)
    if version is None or version[1] == wanted.partition(".")[0]:
        return ""
    return f"wanted CUDA {wanted}, which torch was built for, got {version[0]}"


def _compile(toolkit: Toolkit, cxx_flags: Sequence[str], nvcc_flags: Sequence[str]) -> str:
    """Compile and link what uses the header, and a kernel, as torch compiles an extension."""
    from distutils.ccompiler import new_compiler  # setuptools', imported by every build
    from distutils.sysconfig import customize_compiler

    from torch.utils import cpp_extension

    host = new_compiler()
    customize_compiler(host)
    flags = host.compiler_so[1:]  # type: ignore[attr-defined]  # of Python, CFLAGS, CPPFLAGS
    cxx = shlex.split(cpp_extension.get_cxx_compiler())
    paths = [*cpp_extension.include_paths("cuda"), *toolkit.include_dirs]
    include = [f"-I{path}" for path in paths]
    paths = [*cpp_extension.library_paths("cuda"), *toolkit.library_dirs]
    link = [*(f"-L{path}" for path in paths), "-lcudart"]
    device = [*nvcc_flags, *cpp_extension._get_cuda_arch_flags()]
    if compiler := os.environ.get("CC"):
        device += ["-ccbin", compiler]
    with tempfile.TemporaryDirectory() as folder:
        host_source, device_source = Path(folder, "host.cpp"), Path(folder, "device.cu")
        host_source.write_text(HOST_PROBE)
        device_source.write_text(DEVICE_PROBE)
        output = ["-o", os.path.join(folder, "out")]
        linked = [*cxx, *flags, *include, "-fPIC", *cxx_flags, "-shared"]
        compiled = [_nvcc_of(toolkit), *include, "--compiler-options", "-fPIC", *device, "-c"]
        commands = [[*linked, str(host_source), *link, *output]]
        commands += [[*compiled, str(device_source), *output]]
        results = (_run(command) for command in commands)
        return next((result for result in results if isinstance(result, str)), "")


def _nvcc_of(toolkit: Toolkit) -> str:
    return os.environ.get("PYTORCH_NVCC") or os.path.join(toolkit.home, "bin", "nvcc")


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | str:
    """What a command printed, or in one line why it failed."""
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if result.returncode == 0:
        return result
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|fatal|cannot|not found", line)] or lines
    text = telling[0] if telling else f"it ended with exit code {result.returncode}"
    return re.sub(r"^\S*(host\.cpp|device\.cu)\S*\s*(fatal )?(error: )?", "", text)
