"""Builds of the CUDA sources on the emulator: a library of operations, and the driver.

Everything is compiled by g++ in a folder of its own, object by object, and again only where the
preprocessed source or a flag changed. Test processes that want the same build wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EMULATOR = Path(__file__).resolve().parent
ROOT = EMULATOR.parents[1]
CACHE = ROOT / "build" / "emulator"
MACHINE = ("simt.cpp", "fiber.cpp")
TSAN = "-fsanitize=thread"
ASAN = "-fsanitize=address,undefined"


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
    include = [f"-I{csrc}", f"-I{csrc / 'include'}", f"-I{csrc / 'cuda'}", f"-I{EMULATOR}"]

    def compile_one(source: Path) -> Path:
        own = ["g++", "-std=c++20", "-fPIC", *include, *flags]
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


def build_driver(name: str, flags: list[str], *, csrc: Path = ROOT / "csrc") -> Path:
    """The driver, linked with the kernels in ``csrc``."""
    machine = [EMULATOR / file for file in MACHINE]
    return build(name, [EMULATOR / "driver.cpp", *kernel_sources(csrc), *machine], flags, csrc=csrc)


def build_operations() -> Path:
    """A library that registers ``torch.ops.vrga_emulated``: CPU tensors, CUDA kernels."""
    import torch
    from torch.utils.cpp_extension import include_paths

    host = ROOT / "csrc" / "host"
    sources = [ROOT / "csrc" / "ops.cpp", host / "arguments.cpp", host / "checks.cpp"]
    sources += [
        EMULATOR / "host_ops.cpp",
        EMULATOR / "host_device.cpp",
        *kernel_sources(),
        *(EMULATOR / f for f in MACHINE),
    ]
    flags = ["-O2", "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += ["-Dvrga_ext=vrga_emulated"]  # the namespace of the registrations in csrc/
    flags += [f"-isystem{path}" for path in include_paths()]
    library = Path(torch.__file__).parent / "lib"
    link = ("-shared", f"-L{library}", "-ltorch_cpu", "-ltorch", "-lc10", f"-Wl,-rpath,{library}")
    return build("operations.so", sources, flags, link=link)
