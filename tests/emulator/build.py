"""Builds for machines without a GPU or AVX-512: libraries of operations, and `check_kernels`.

Everything is compiled by g++ in a folder of its own, object by object, and again only where the
preprocessed source or a flag changed. Test processes that want the same build wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EMULATOR = Path(__file__).resolve().parent
ROOT = EMULATOR.parents[1]
CACHE = ROOT / "build" / "emulator"
MACHINE = ("simt.cpp", "fiber.cpp")
TSAN = "-fsanitize=thread"
ASAN = "-fsanitize=address,undefined"
AVX512_LEVELS = ("avx512", "avx512_bf16", "amx_bf16")


def run(command: list[str]) -> str:
    """Standard output of a compiler; its messages become the exception's."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout


def digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def build(
    name: str,
    sources: list[Path],
    flags: list[str],
    *,
    csrc: Path = ROOT / "csrc",
    link: tuple[str, ...] = (),
    jobs: int | None = None,
) -> Path:
    """Compile ``sources`` with ``flags`` and link them, in ``build/emulator/<name>``."""
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    include = [f"-I{csrc}", f"-I{EMULATOR}"]

    def compile_one(source: Path) -> Path:
        # Messages with __FILE__ name the same file wherever csrc is.
        own = ["g++", "-std=c++20", "-fPIC", f"-fmacro-prefix-map={csrc}=csrc", *include, *flags]
        if TSAN in flags and source.name in MACHINE:
            # The machine is not what is tested, and its own accesses are not the kernels'.
            own = [flag for flag in own if flag != TSAN] + ["-DVRGA_EMULATOR_TSAN"]
        text = run([*own, "-x", "c++", "-E", "-P", str(source)])  # names no folder
        target = folder / f"{source.stem}-{digest(text, *flags)}.o"
        if not target.exists():
            for old in folder.glob(f"{source.stem}-*.o"):
                old.unlink()
            run([*own, "-x", "c++", "-c", str(source), "-o", str(target)])
        return target

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(jobs or min(4, os.cpu_count() or 1)) as pool:
            objects = list(pool.map(compile_one, sources))
        target = folder / f"linked-{digest(*map(str, objects), *link)}"
        if not target.exists():
            for old in folder.glob("linked-*"):
                old.unlink()
            sanitizers = [flag for flag in flags if flag.startswith("-fsanitize")]
            run(["g++", *sanitizers, *map(str, objects), *link, "-o", str(target)])
    return target


def kernel_sources(csrc: Path = ROOT / "csrc") -> list[Path]:
    return [*sorted((csrc / "cuda").rglob("*.cu")), csrc / "cuda" / "plan.cpp"]


def build_check(name: str, flags: list[str], *, csrc: Path = ROOT / "csrc") -> Path:
    """``check_kernels``, linked with the kernels in ``csrc``."""
    sources = [EMULATOR / file for file in ("check_kernels.cpp", *MACHINE)]
    return build(name, [*sources, *kernel_sources(csrc)], flags, csrc=csrc)


def build_operations() -> Path:
    """A library that registers ``torch.ops.vrga_emulated``: CPU tensors, CUDA kernels."""
    sources = [*kernel_sources(), *(EMULATOR / f for f in MACHINE)]
    sources += [EMULATOR / "emulated_ops.cpp", EMULATOR / "emulated_device.cpp"]
    return build_library("operations.so", "vrga_emulated", sources, ["-O2"])


def build_avx512_operations() -> Path:
    """A library that registers ``torch.ops.vrga_avx512``: AVX-512 and AMX by loops over lanes."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = without_avx512(Path(folder))
        cpu = csrc / "cpu"
        sources = [cpu / "scheduler.cpp", csrc / "torch" / "cpu_ops.cpp"]
        sources += [cpu / "isa" / f"{name}.cpp" for name in AVX512_LEVELS]
        sources += [EMULATOR / "avx512_levels.cpp"]
        flags = ["-O1", "-mavx2", "-mfma", "-mf16c", "-Wno-psabi"]
        flags += ["-include", str(EMULATOR / "avx512_by_loops.h")]
        return build_library("avx512.so", "vrga_avx512", sources, flags, csrc=csrc)


def without_avx512(folder: Path) -> Path:
    """A copy of csrc/ whose AVX-512 kernels are compiled for AVX2; returns its path."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)

    def edit(file: Path, pattern: str, replacement: str) -> None:
        text, count = re.subn(pattern, replacement, file.read_text())
        assert count > 0, (file, pattern)
        file.write_text(text)

    for name in AVX512_LEVELS:
        edit(csrc / "cpu" / "isa" / f"{name}.cpp", r",(avx512|amx-)\w+", "")
    # Those for tiles are assembly to the compiler, which would not refuse one without a loop.
    loops = (EMULATOR / "avx512_by_loops.h").read_text()
    for header in (csrc / "cpu" / "kernels").glob("*.h"):
        for name in re.findall(r"\b_tile_\w+(?=\()", header.read_text()):
            assert f"#define {name}(" in loops, name
    for header in ("simd/avx512.h", "kernels/scores.h"):
        # There is no register of that width, so what was to stay in one stays in memory.
        edit(csrc / "cpu" / header, r'"\+v"', '"+m"')
    return csrc


def build_library(
    name: str, namespace: str, sources: list[Path], flags: list[str], *, csrc: Path = ROOT / "csrc"
) -> Path:
    """A library that registers the operations of ``sources`` in ``torch.ops.<namespace>``."""
    import torch
    from torch.utils.cpp_extension import include_paths

    common = [csrc / "torch" / file for file in ("binding.cpp", "arguments.cpp", "checks.cpp")]
    sources = [*common, *sources]
    flags = [*flags, "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += [f"-Dvrga_ext={namespace}"]  # the namespace of the registrations in csrc/
    flags += [f"-isystem{path}" for path in include_paths()]
    library = Path(torch.__file__).parent / "lib"
    link = ("-shared", f"-L{library}", "-ltorch_cpu", "-ltorch", "-lc10", f"-Wl,-rpath,{library}")
    return build(name, sources, flags, csrc=csrc, link=link)
