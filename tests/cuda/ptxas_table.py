"""Compile every kernel for every architecture and print what ptxas says.

    python tests/cuda/ptxas_table.py [--architectures 80,90] [--files d128] [--jobs 2]

Registers, spills, shared memory and blocks per multiprocessor, one line per kernel and
architecture. Exit status 1 if a kernel spills, if fewer of its blocks fit into a multiprocessor
than `csrc/cuda/plan.cpp` counts on, or if one that may start before its predecessor has ended
(sm_90 and newer) touches global memory before it waits. Needs nvcc and g++, neither a GPU nor
torch.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).resolve().parents[2] / "csrc"
EMULATOR = Path(__file__).resolve().parents[1] / "emulator"
# Shared memory of a multiprocessor in KiB; every block takes 1 KiB of it for itself.
SHARED_KIB = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
REGISTERS = 65536
# PTX is compiled once for each of these and assembled for the architectures from there up to the
# next, for which the sources compile to the same but for the name of the target.
VIRTUAL = (80, 90, 100)


class Kernel(NamedTuple):
    """One line of the table."""

    architecture: int
    name: str
    registers: int
    spill_bytes: int
    shared_bytes: int | None
    blocks: int | None
    waits_first: bool = True

    def fits(self) -> bool:
        wanted = 2
        if "256" in self.name:
            wanted = 1 if SHARED_KIB[self.architecture] < 150 else 2
        elif self.name.endswith(", 1, false>") and self.architecture in (90, 100):
            wanted = 4  # row statistics
        return self.spill_bytes == 0 and (self.blocks is None or self.blocks >= wanted)


def find_nvcc() -> str:
    """Path of nvcc; SystemExit without one."""
    path = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(path).exists():
        raise SystemExit("nvcc: not on the PATH and not under /usr/local/cuda/bin")
    return path


def dynamic_shared() -> dict[tuple[int, int], int]:
    """Dynamic shared memory in bytes by (D, row slots); D = 0 is the plain kernel."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "shared_bytes"
        source = Path(__file__).with_name("shared_bytes.cpp")
        include = [f"-I{CSRC}", f"-I{EMULATOR}"]
        simt = [str(EMULATOR / name) for name in ("simt.cpp", "fiber.cpp")]
        subprocess.run(
            ["g++", "-std=c++20", *include, str(source), *simt, "-o", str(program)], check=True
        )
        lines = subprocess.run(
            [str(program)], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    return {(int(d), int(slots)): int(size) for d, slots, size in (line.split() for line in lines)}


def compile_ptx(nvcc: str, source: Path, virtual: int) -> str:
    """The PTX of a source."""
    flags = ["-std=c++17", "-O3", f"-I{CSRC}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.ptx"
        run([nvcc, *flags, "-ptx", f"-arch=compute_{virtual}", source, "-o", out])
        return out.read_text()


def assemble(nvcc: str, ptx: str, architecture: int) -> str:
    """What ptxas -v says."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.ptx"
        source.write_text(ptx)
        tool = Path(nvcc).resolve().with_name("ptxas")
        return run([tool, "-v", f"-arch=sm_{architecture}", source, "-o", f"{folder}/out"])


def run(command: list[str | Path]) -> str:
    """What a command prints; SystemExit with it if the command fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    text = result.stdout + result.stderr
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{text}")
    return text


def waits_first(body: str) -> bool:
    """Whether the PTX of a kernel reads and writes no global memory before it waits.

    What runs before the wait must be what is written before it: every branch stays there. Of the
    memory, parameters and the block's own shared memory are allowed.
    """
    before, wait, _ = body.partition("griddepcontrol.wait;")
    allowed = r"(?:ld\.param|ld\.shared|st\.shared)\b"
    access = re.search(rf"\b(?!{allowed})(?:ld|ldu|st|atom|red|cp|prefetch)\.", before)
    targets = set(re.findall(r"\bbra(?:\.uni)?\s+([$\w]+);", before))
    labels = set(re.findall(r"^([$\w]+):", before, re.MULTILINE))
    leaves = re.search(r"\b(call|brx|ret|exit)\b", before) or not targets <= labels
    return bool(wait) and not access and not leaves


def demangle(symbol: str) -> str:
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True).stdout.strip()
    return re.sub(r"\(.*|void |vrga::gpu::", "", name)


def shared_of(name: str, shared: dict[tuple[int, int], int]) -> int | None:
    tensor = re.match(r"tensor_split<\w+, (\d+), (\d)", name)
    if tensor:
        return shared[int(tensor[1]), int(tensor[2])]
    return shared[0, 1] if name.startswith("plain_split") else None


def parse(
    text: str, ptx: str, architecture: int, shared: dict[tuple[int, int], int]
) -> list[Kernel]:
    kernels = []
    bodies = dict(re.findall(r"^\.entry (\w+)\((.*?)^\}", ptx, re.DOTALL | re.MULTILINE))
    pattern = (
        r"Compiling entry function '(\w+)'"
        r".*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) reg"
    )
    for symbol, stores, loads, registers in re.findall(pattern, text, re.S):
        name = demangle(symbol)
        size = shared_of(name, shared)
        blocks = None
        if size is not None:
            per_block = -(-int(registers) // 8) * 8 * 128
            blocks = min(REGISTERS // per_block, SHARED_KIB[architecture] * 1024 // (size + 1024))
        kernels.append(
            Kernel(
                architecture,
                name,
                int(registers),
                int(stores) + int(loads),
                size,
                blocks,
                architecture < 90 or waits_first(bodies[symbol]),
            )
        )
    return kernels


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", default=",".join(map(str, SHARED_KIB)))
    parser.add_argument("--files", default="", help="only sources whose name contains this")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()

    nvcc, shared = find_nvcc(), dynamic_shared()
    sources = sorted(path for path in (CSRC / "cuda").rglob("*.cu") if arguments.files in path.name)
    wanted: dict[int, list[int]] = {}  # virtual architecture -> real ones
    for architecture in map(int, arguments.architectures.split(",")):
        virtual = max(v for v in VIRTUAL if v <= architecture)
        wanted.setdefault(virtual, []).append(architecture)

    def table_of(item: tuple[int, Path]) -> list[Kernel]:
        ptx = compile_ptx(nvcc, item[1], item[0])
        return [k for a in wanted[item[0]] for k in parse(assemble(nvcc, ptx, a), ptx, a, shared)]

    with ThreadPoolExecutor(arguments.jobs) as pool:
        tables = pool.map(table_of, [(v, source) for v in wanted for source in sources])
        kernels = sorted((k for table in tables for k in table), key=lambda k: k.architecture)

    print("| arch | kernel | registers | spilled bytes | shared bytes | blocks per SM |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kernel in kernels:
        size, blocks = ("-" if value is None else value for value in kernel[4:6])
        cells = [f"sm_{kernel.architecture}", f"`{kernel.name}`", kernel.registers]
        print("|", " | ".join(map(str, [*cells, kernel.spill_bytes, size, blocks])), "|")
    failed = [kernel for kernel in kernels if not kernel.fits()]
    for kernel in failed:
        print(f"spills or does not fit: sm_{kernel.architecture} {kernel.name}", file=sys.stderr)
    early = [kernel for kernel in kernels if not kernel.waits_first]
    for kernel in early:
        print(f"does not wait first: sm_{kernel.architecture} {kernel.name}", file=sys.stderr)
    print(f"{len(kernels)} kernels, {len(failed)} spill or do not fit, {len(early)} do not wait")
    return 1 if failed or early or not kernels else 0


if __name__ == "__main__":
    raise SystemExit(main())
