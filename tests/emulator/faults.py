"""Faults to plant into the kernels, and which build of `check_kernels` has to notice each.

A fault is a textual edit of one header: its text must occur there exactly once, so that a fault
cannot silently stop being planted when the kernels change.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from tests.emulator import build

TENSOR, TILE = "tensor_split.cuh", "tensor_tile.cuh"
KEYS, ACCESS = "tensor_keys.cuh", "key_access.cuh"
RESULT, MERGE = "block_result.cuh", "merge_decode.cuh"

# The build notices a fault where the program exits with an error: wrong numbers, NaN from poisoned
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
        "copy_async_wait<Shape::kSlots - 2>();",
        "",
    ),
    Fault(
        "wait leaves one group too many",
        "plain",
        TENSOR,
        "copy_async_wait<Shape::kSlots - 2>();",
        "copy_async_wait<Shape::kSlots - 1>();",
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
        "start_copy(slot == 0 ? Shape::kSlots - 1 : slot - 1);",
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
        "  sync_block();\n}\n\n}  // namespace",
        "}\n\n}  // namespace",
    ),
    Fault(
        "keys that were copied in vain taken for the next ones",
        "plain",
        TENSOR,
        "if (kDecode && i > 0) {",
        "if (false) {",
    ),
    Fault(
        "swizzle missing on one side",
        "plain",
        TILE,
        "Layout::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2)",
        "((lane % 8 + lane / 16 * 8) * (kDim / 8) + lane / 8 % 2) * 16",
    ),
    Fault(
        "no swizzle: bank conflicts",
        "plain",
        TILE,
        "return row >> (3 - kBits) & kMask;",
        "return 0 * row;",
    ),
    Fault(
        "tail of the keys off by one in the scores",
        "plain",
        KEYS,
        "if (key < end) {",
        "if (key <= end) {",
    ),
    Fault(
        "tail of the keys off by one in the load",
        "asan",
        TILE,
        "first + row + below < end",
        "first + row + below <= end",
    ),
    Fault(
        "unused values multiplied by zero",
        "plain",
        TENSOR,
        "clear_unused<kDim>(shared + value_slot, used);",
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
        "max_across_lanes(peak[s], 1, 4)",
        "max_across_lanes(peak[s], 1, 2)",
    ),
    Fault(
        "splits write to one place",
        "plain",
        RESULT,
        "(row.row * p.splits + place.split) * p.stored_planes",
        "(row.row * p.splits) * p.stored_planes",
    ),
    Fault(
        "no barrier before the gate is read",
        "plain",
        MERGE,
        "sync_block();\n  const int columns",
        "const int columns",
    ),
    Fault(
        "sums of the wrong plane",
        "plain",
        MERGE,
        "(w * 2 + result.plane)",
        "(w * 2 + 1 - result.plane)",
    ),
]


def plant(fault: Fault | None, folder: Path) -> Path:
    """A copy of csrc/ in ``folder`` with the fault in it; returns its path."""
    csrc = folder / "csrc"
    for part in ("core", "cuda"):
        shutil.copytree(build.ROOT / "csrc" / part, csrc / part)
    if fault is not None:
        path = csrc / "cuda" / "kernels" / fault.file
        text = path.read_text()
        assert text.count(fault.before) == 1, (
            f"{fault.name}: text found {text.count(fault.before)} times"
        )
        path.write_text(text.replace(fault.before, fault.after))
    return csrc


def build_small_check(name: str, csrc: Path, flags: list[str]) -> Path:
    """``check_kernels`` with what its ``--small`` cases need: D = 64 and the plain kernels."""
    files = ("check_kernels.cpp", "only_d64.cpp", *build.MACHINE)
    sources = [build.EMULATOR / file for file in files]
    sources += [csrc / "cuda" / "plan.cpp", csrc / "cuda" / "launch.cu"]
    sources += sorted((csrc / "cuda" / "instantiations").glob("*_d64.cu"))
    return build.build(name, sources, flags, csrc=csrc)
