"""Native build of vrga_ext; metadata is in pyproject.toml.

Environment switches:

    VRGA_EXT_CUDA         CUDA kernels: where they can be built (unset), 0: never, 1: fail without
    CXX                   the C++ compiler (default c++)
    CUDA_HOME             the CUDA toolkit, where it is not that of nvcc or in a usual place
    TORCH_CUDA_ARCH_LIST  architectures to build for (default below); no GPU is ever asked
    MAX_JOBS              parallel compiler processes
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setuptools import setup

if TYPE_CHECKING:
    from build_backend import cuda_toolkit

DEFAULT_CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0+PTX;12.0+PTX"
TORCH_TARGET_VERSION = "0x020b000000000000"  # LibTorch stable ABI of 2.11: serves every later torch

sys.path.append(str(Path(__file__).resolve().parent / "build_backend"))

METADATA_COMMANDS = {"egg_info", "dist_info", "sdist"}

CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno"]
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]


def _sources(*patterns: str) -> list[str]:
    return sorted(path for pattern in patterns for path in glob(pattern, recursive=True))


def _operation_sources(with_cuda: bool) -> list[str]:
    cuda = _sources("csrc/cuda/**/*.cu", "csrc/cuda/*.cpp", "csrc/torch/cuda_*.cpp")
    cpu = _sources("csrc/torch/*.cpp", "csrc/cpu/**/*.cpp")
    return [path for path in cpu if path not in cuda] + (cuda if with_cuda else [])


def _source_hash() -> str:
    return runpy.run_path("vrga_ext/_sources.py")["source_hash"](Path("csrc"))


def _check_compiler() -> None:
    from torch.utils.cpp_extension import get_cxx_compiler

    compiler = get_cxx_compiler()
    if shutil.which(compiler.partition(" ")[0]) is None:  # CXX may hold options
        raise SystemExit(
            f"vrga_ext: wanted a C++ compiler, got {compiler!r}, which was not found; "
            "install one or set CXX"
        )


def _cuda_toolkit() -> cuda_toolkit.Toolkit | str:
    """The toolkit that CUDA kernels are built with, or why none are built.

    Raises
    ------
    SystemExit
        If ``VRGA_EXT_CUDA`` asks for kernels that cannot be built, or for anything else.
    """
    import torch
    from cuda_toolkit import choose

    switch = os.environ.get("VRGA_EXT_CUDA", "")
    if switch not in ("", "0", "1"):
        raise SystemExit(f"vrga_ext: VRGA_EXT_CUDA: wanted 0, 1 or nothing, got {switch!r}")
    toolkit: cuda_toolkit.Toolkit | str
    if switch == "0":
        toolkit = "switched off by VRGA_EXT_CUDA=0 at build time"
    elif torch.version.cuda is None:
        toolkit = f"built against torch {torch.__version__}, which is not a CUDA build of torch"
    else:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHITECTURES)
        toolkit = choose(CXX_FLAGS, NVCC_FLAGS)
    if isinstance(toolkit, str) and switch == "1":
        raise SystemExit(f"vrga_ext: VRGA_EXT_CUDA=1, but no CUDA kernels: {toolkit}")
    return toolkit


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
    toolkit = _cuda_toolkit()
    with_cuda = not isinstance(toolkit, str)
    include_dirs = [str(Path("csrc").resolve())]
    library_dirs: list[str] = []
    defines = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    if isinstance(toolkit, str):
        print(f"vrga_ext: building CPU operations only: {toolkit}", file=sys.stderr)
    else:
        include_dirs += toolkit.include_dirs
        library_dirs += toolkit.library_dirs
        defines.append(("USE_CUDA", None))

    every_source = _sources("csrc/**/*.*")  # headers, too: without ninja they are not looked into
    make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    operations = make(
        "vrga_ext._ops",
        _operation_sources(with_cuda),
        depends=every_source,
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        define_macros=defines,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        extra_link_args=["-Wl,-s"] if sys.platform == "linux" else [],
        py_limited_api=True,
    )

    import pybind11

    facts = {
        "VRGA_TORCH_VERSION": torch.__version__,
        "VRGA_CUDA_ARCHITECTURES": os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else "",
        "VRGA_CUDA_VERSION": (torch.version.cuda or "") if with_cuda else "",
        "VRGA_CUDA_MISSING": toolkit if isinstance(toolkit, str) else "",
        "VRGA_SOURCE_HASH": _source_hash(),
    }
    build_info = Extension(
        "vrga_ext._build_info",
        ["csrc/build_info.cpp"],
        depends=every_source,
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
