"""Does the device do what the emulator says it does, primitive by primitive?

    python -m tests.gpu.primitives

Builds ``primitives.cu`` twice, with nvcc for the GPU at hand and with g++ for the emulator, runs
both and compares: bits, except where the hardware is free to round. To be run before anything else
on a GPU: every emulated test rests on it.
"""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.cuda.ptxas_table import find_nvcc
from tests.emulator import build

SOURCE = Path(__file__).with_name("primitives.cu")
# Relative to 1 + the value: products are summed in another order, ex2.approx has 2 ulp.
TOLERANCE = {"products_bf16": 2e-6, "products_fp16": 2e-6}
RELATIVE = {"exponentials": 2.0**-21}


def run(program: Path) -> dict[tuple[str, int], int]:
    """Results by name and index."""
    text = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    rows = (line.split() for line in text.splitlines())
    return {(name, int(index)): int(word, 16) for name, index, word in rows}


def emulated() -> dict[tuple[str, int], int]:
    machine = [build.EMULATOR / name for name in build.MACHINE]
    return run(build.build("primitives", [SOURCE, *machine], ["-O1"]))


def on_device() -> dict[tuple[str, int], int]:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "primitives"
        include = f"-I{build.ROOT / 'csrc'}"
        command = [
            find_nvcc(),
            "-std=c++20",
            "-arch=native",
            include,
            str(SOURCE),
            "-o",
            str(program),
        ]
        subprocess.run(command, check=True)
        return run(program)


def as_float(word: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", word))[0]
    return value


def agrees(name: str, device: int, emulator: int) -> bool:
    """Whether one word of the two results is the same within what the hardware may round."""
    if device == emulator:
        return True
    a, b = as_float(device), as_float(emulator)
    if name in TOLERANCE:
        return abs(a - b) <= TOLERANCE[name] * (1 + abs(b))
    if name in RELATIVE:
        # Results below the smallest normal float are 0 on the device.
        return math.isclose(a, b, rel_tol=RELATIVE[name]) or (a == 0 and abs(b) < 2.0**-126)
    return False


def compare(
    device: dict[tuple[str, int], int], emulator: dict[tuple[str, int], int]
) -> tuple[Counter[str], list[str]]:
    """Number of agreeing words per primitive, and a line per disagreement."""
    assert device.keys() == emulator.keys()
    good: Counter[str] = Counter()
    bad = []
    for (name, index), word in device.items():
        if agrees(name, word, emulator[name, index]):
            good[name] += 1
        else:
            bad.append(f"{name}[{index}]: device {word:08x}, emulator {emulator[name, index]:08x}")
    return good, bad


def main() -> int:
    good, bad = compare(on_device(), emulated())
    for name, count in good.items():
        print(f"{name:<14} {count} words agree")
    print("\n".join(bad[:40]), file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
