"""Faults to plant into the kernels, and which build of the driver has to notice each.

A fault is a textual edit of one header: its text must occur there exactly once, so that a fault
cannot silently stop being planted when the kernels change.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from tests.emulator import build

TENSOR, TILE = "tensor_split.cuh", "tensor_tile.cuh"
ACCESS, RESULT = "key_access.cuh", "block_result.cuh"

# The build notices a fault where the driver exits with an error: wrong numbers, NaN from poisoned
# memory, a bank conflict, a check of the machine, or a report of the sanitizer.
BUILDS = {
    "plain": ["-O1"],
    "asan": ["-O1", "-g1", build.ASAN, "-fno-sanitize-recover=all"],
    "tsan": ["-O1", "-g1", build.TSAN],
}


class Fault(NamedTuple):
    """Replace ``before`` in ``file`` by ``after``."""

    name: str
    noticed_by: str  # a key of BUILDS
    file: str
    before: str
    after: str


FAULTS = [
    Fault(
        "no wait for asynchronous copies",
        "plain",
        TENSOR,
        "copy_async_wait<kShallow - 2>();",
        "",
    ),
    Fault(
        "wait leaves one group too many",
        "plain",
        TENSOR,
        "copy_async_wait<kDeep - 2>();",
        "copy_async_wait<kDeep - 1>();",
    ),
    Fault(
        "no warp barrier after the wait",
        "tsan",
        TENSOR,
        "sync_warp();\n    start_copy(",
        "start_copy(",
    ),
    Fault(
        "ring slot refilled too early",
        "plain",
        TENSOR,
        "start_copy(slot == 0 ? slots - 1 : slot - 1);",
        "start_copy(slot);",
    ),
    Fault(
        "no barrier before the ring is reused",
        "plain",
        TENSOR,
        "sync_block();\n  auto* sum_rows",
        "auto* sum_rows",
    ),
    Fault(
        "warp barrier where the block must meet",
        "plain",
        TENSOR,
        "sync_block();\n  finish_states",
        "sync_warp();\n  finish_states",
    ),
    Fault(
        "no barrier before the results are read",
        "tsan",
        RESULT,
        "if (writes_result(p)) {\n    sync_block();",
        "if (writes_result(p)) {",
    ),
    Fault(
        "no barrier after the tile marks",
        "plain",
        ACCESS,
        "sync_block();\n  return list;",
        "return list;",
    ),
    Fault(
        "swizzle missing on one side",
        "plain",
        TILE,
        "slot + swizzled<kDim / 8>(key, chunk) * 16",
        "slot + (key * (kDim / 8) + chunk) * 16",
    ),
    Fault(
        "no swizzle: bank conflicts",
        "plain",
        TILE,
        "((chunk ^ (row >> (3 - k))) & mask)",
        "(chunk & mask)",
    ),
    Fault(
        "tail of the keys off by one in the scores",
        "plain",
        TENSOR,
        "row_valid[s] && key < s_kv",
        "row_valid[s] && key <= s_kv",
    ),
    Fault(
        "tail of the keys off by one in the load",
        "asan",
        TILE,
        "const bool valid = first + row < s_kv;",
        "const bool valid = first + row <= s_kv;",
    ),
    Fault(
        "unused values multiplied by zero",
        "plain",
        TENSOR,
        "clear_unused<kDim>(value_slot, used);",
        "",
    ),
    Fault(
        "lanes diverge before a matrix instruction",
        "plain",
        TILE,
        "load_matrices<true>(values,",
        "if (lane != 5) load_matrices<true>(values,",
    ),
    Fault(
        "half of a row's lanes left out of its maximum",
        "plain",
        TENSOR,
        "max_across_lanes(keys[s].peak(scale), 1, 4)",
        "max_across_lanes(keys[s].peak(scale), 1, 2)",
    ),
    Fault(
        "splits write to one place",
        "plain",
        RESULT,
        "(result.row * p.splits + place.split) * 2",
        "(result.row * p.splits) * 2",
    ),
]


def plant(fault: Fault | None, folder: Path) -> Path:
    """A copy of csrc/ in ``folder`` with the fault in it; returns its path."""
    csrc = folder / "csrc"
    for part in ("include", "cuda"):
        shutil.copytree(build.ROOT / "csrc" / part, csrc / part)
    if fault is not None:
        path = csrc / "include" / "vrga" / fault.file
        text = path.read_text()
        assert text.count(fault.before) == 1, (
            f"{fault.name}: text found {text.count(fault.before)} times"
        )
        path.write_text(text.replace(fault.before, fault.after))
    return csrc


def build_small_driver(name: str, csrc: Path, flags: list[str]) -> Path:
    """The driver with what its ``--small`` cases need: D = 64 and the plain kernels."""
    sources = [build.EMULATOR / file for file in ("driver.cpp", "small_driver.cpp", *build.MACHINE)]
    sources += [csrc / "cuda" / "plan.cpp", csrc / "cuda" / "launch.cu"]
    sources += sorted((csrc / "cuda" / "instantiations").glob("*_d64.cu"))
    return build.build(name, sources, flags, csrc=csrc)
