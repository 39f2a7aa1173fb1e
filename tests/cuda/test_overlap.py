"""Every kernel is launched so that it may start before its predecessor has ended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gpu import overlap

FOLDER = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "kernels"
KERNEL = re.compile(
    r"^VRGA_KERNEL VRGA_LAUNCH_BOUNDS\(.*?\)\s+(\w+)\(.*?\) \{\n(.*?)^\}", re.DOTALL | re.MULTILINE
)
KERNELS = {
    name: body for path in FOLDER.glob("*.cuh") for name, body in KERNEL.findall(path.read_text())
}


def test_all_kernels_are_found():
    texts = [path.read_text() for path in FOLDER.glob("*.cuh")]
    assert len(KERNELS) == sum(text.count("\nVRGA_KERNEL ") for text in texts)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_waits_before_it_reads_or_writes(name):
    before, wait, _ = KERNELS[name].partition("wait_for_previous_kernel();")
    assert wait
    # Addresses and places in the grid are all there is until then. By names, without a compiler;
    # where nvcc is, ptxas_table.waits_first looks at what it made of them.
    assert not re.search(r"\b(load|read|read_\w+|copy_async)\(", before)


@pytest.mark.parametrize("dtype", overlap.DTYPES)
def test_no_two_rounds_of_the_chain_on_the_gpu_are_alike(dtype):
    case = overlap.inputs(dtype, "cpu")
    queries = [overlap.chain(*case, length=length)[0].float() for length in (19, 20, 21)]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        change = (queries[one] - queries[other]).abs().amax(dim=(0, 2, 3))
        assert (change > 0.01 * queries[one].abs().amax()).all()
