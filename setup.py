"""Native build of vrga_ext; metadata is in pyproject.toml.

Environment switches:

    VRGA_EXT_CUDA         auto (default), 0: never, 1: fail unless the CUDA kernels can be built
    CUDA_HOME             the CUDA toolkit, where nvcc is not on the PATH
    TORCH_CUDA_ARCH_LIST  architectures to build for (default below); no GPU is ever asked
    MAX_JOBS              parallel compiler processes
"""

from __future__ import annotations

import os
import sys
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import setup

DEFAULT_CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
TORCH_TARGET_VERSION = "0x020b000000000000"  # LibTorch stable ABI of 2.11: serves every later torch

METADATA_COMMANDS = {"egg_info", "dist_info", "sdist"}

CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno"]
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]


def _sources(*patterns: str) -> list[str]:
    return sorted(path for pattern in patterns for path in glob(pattern, recursive=True))


def _cuda_obstacle(cuda_sources: list[str]) -> str:
    """Why the CUDA kernels cannot be built here; empty if they can."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if os.environ.get("VRGA_EXT_CUDA") == "0":
        return "switched off by VRGA_EXT_CUDA=0 at build time"
    if not cuda_sources:
        return "this version has no CUDA kernels"
    if torch.version.cuda is None:
        return f"built against torch {torch.__version__}, which is not a CUDA build of torch"
    if CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
        return "no nvcc was found at build time; install the CUDA toolkit or set CUDA_HOME"
    return ""


def _extensions() -> tuple[list[Any], dict[str, Any]]:
    if METADATA_COMMANDS.intersection(sys.argv):  # needs no compiled code, and maybe has no torch
        return [], {}
    try:
        import torch
    except ImportError as error:
        raise SystemExit(f"vrga_ext: cannot build without torch: {error}") from error
    from setuptools import Extension
    from torch.utils import cpp_extension

    cuda_sources = _sources("csrc/cuda/**/*.cu", "csrc/cuda/*.cpp", "csrc/host/cuda_*.cpp")
    obstacle = _cuda_obstacle([path for path in cuda_sources if path.endswith(".cu")])
    if obstacle and os.environ.get("VRGA_EXT_CUDA") == "1":
        raise SystemExit(f"vrga_ext: VRGA_EXT_CUDA=1, but no CUDA kernels: {obstacle}")
    with_cuda = not obstacle
    if with_cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHITECTURES)
    else:
        print(f"vrga_ext: building CPU operations only: {obstacle}", file=sys.stderr)

    sources = _sources("csrc/ops.cpp", "csrc/host/*.cpp", "csrc/cpu/**/*.cpp")
    sources = [path for path in sources if path not in cuda_sources]
    defines = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    operations = make(
        "vrga_ext._ops",
        sources + (cuda_sources if with_cuda else []),
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


EXTENSIONS, COMMANDS = _extensions()
setup(ext_modules=EXTENSIONS, cmdclass=COMMANDS)
