"""Native build of vrga_ext; metadata is in pyproject.toml.

Environment switches:

    VRGA_EXT_CUDA         CUDA kernels: where they can be built (unset), 0: never, 1: fail without
    CXX                   the C++ compiler (default c++)
    CUDA_HOME             the CUDA toolkit, where nvcc is not on the PATH
    TORCH_CUDA_ARCH_LIST  architectures to build for (default below); no GPU is ever asked
    MAX_JOBS              parallel compiler processes
"""

from __future__ import annotations

import os
import shutil
import sys
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import setup

DEFAULT_CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0+PTX;12.0+PTX"
TORCH_TARGET_VERSION = "0x020b000000000000"  # LibTorch stable ABI of 2.11: serves every later torch

METADATA_COMMANDS = {"egg_info", "dist_info", "sdist"}

CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno"]
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]


def _sources(*patterns: str) -> list[str]:
    return sorted(path for pattern in patterns for path in glob(pattern, recursive=True))


def _operation_sources(with_cuda: bool) -> list[str]:
    cuda = _sources("csrc/cuda/**/*.cu", "csrc/cuda/*.cpp", "csrc/host/cuda_*.cpp")
    cpu = _sources("csrc/ops.cpp", "csrc/host/*.cpp", "csrc/cpu/**/*.cpp")
    return [path for path in cpu if path not in cuda] + (cuda if with_cuda else [])


def _check_compiler() -> None:
    from torch.utils.cpp_extension import get_cxx_compiler

    compiler = get_cxx_compiler()
    if shutil.which(compiler.partition(" ")[0]) is None:  # CXX may hold options
        raise SystemExit(
            f"vrga_ext: wanted a C++ compiler, got {compiler!r}, which was not found; "
            "install one or set CXX"
        )


def _cuda_obstacle() -> str:
    """Why no CUDA kernels are built here; empty if they are.

    Raises
    ------
    SystemExit
        If ``VRGA_EXT_CUDA`` asks for kernels that cannot be built, or for anything else.
    """
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    switch = os.environ.get("VRGA_EXT_CUDA", "")
    if switch not in ("", "0", "1"):
        raise SystemExit(f"vrga_ext: VRGA_EXT_CUDA: wanted 0, 1 or nothing, got {switch!r}")
    obstacle = ""
    if switch == "0":
        obstacle = "switched off by VRGA_EXT_CUDA=0 at build time"
    elif torch.version.cuda is None:
        obstacle = f"built against torch {torch.__version__}, which is not a CUDA build of torch"
    elif CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
        obstacle = "no nvcc was found at build time; install the CUDA toolkit or set CUDA_HOME"
    if obstacle and switch == "1":
        raise SystemExit(f"vrga_ext: VRGA_EXT_CUDA=1, but no CUDA kernels: {obstacle}")
    return obstacle


def _extensions() -> tuple[list[Any], dict[str, Any]]:
    if METADATA_COMMANDS.intersection(sys.argv):  # needs no compiled code, and maybe has no torch
        return [], {}
    try:
        import torch
    except ImportError as error:
        raise SystemExit(f"vrga_ext: cannot build without torch: {error}") from error
    from setuptools import Extension
    from torch.utils import cpp_extension

    _check_compiler()
    obstacle = _cuda_obstacle()
    with_cuda = not obstacle
    if with_cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHITECTURES)
    else:
        print(f"vrga_ext: building CPU operations only: {obstacle}", file=sys.stderr)

    defines = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    operations = make(
        "vrga_ext._ops",
        _operation_sources(with_cuda),
        include_dirs=[str(Path("csrc").resolve()), str(Path("csrc/include").resolve())],
        define_macros=defines + ([("USE_CUDA", None)] if with_cuda else []),
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        extra_link_args=["-Wl,-s"] if sys.platform == "linux" else [],
        py_limited_api=True,
    )

    import pybind11

    facts = {
        "VRGA_TORCH_VERSION": torch.__version__,
        "VRGA_CUDA_ARCHITECTURES": os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else "",
        "VRGA_CUDA_VERSION": (torch.version.cuda or "") if with_cuda else "",
        "VRGA_CUDA_MISSING": obstacle,
    }
    build_info = Extension(
        "vrga_ext._build_info",
        ["csrc/build_info.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[(name, '"' + text.replace('"', "'") + '"') for name, text in facts.items()],
        extra_compile_args={"cxx": CXX_FLAGS},
        language="c++",
    )
    build_ext = cpp_extension.BuildExtension.with_options(use_ninja=True)
    return [operations, build_info], {"build_ext": build_ext}


if __name__ == "__main__":
    extensions, commands = _extensions()
    setup(ext_modules=extensions, cmdclass=commands)
