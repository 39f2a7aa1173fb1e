"""The kernels compile for a GPU, do not spill and wait for their predecessors.

Every architecture: ``python tests/cuda/ptxas_table.py``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import ptxas_table

SCRIPT = Path(ptxas_table.__file__)

OUTPUT = """\
ptxas info    : Compiling entry function '_ZN4vrga3gpu5mergeE' for 'sm_90'
ptxas info    : Function properties for _ZN4vrga3gpu5mergeE
    8 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""
PTX = """\
.entry _ZN4vrga3gpu5mergeE(
	.param .align 8 .b8 _ZN4vrga3gpu5mergeE_param_0[8]
)
{
	ld.param.u64 %rd1, [_ZN4vrga3gpu5mergeE_param_0];
	@%p1 bra $L__BB0_2;
	st.shared.u64 [%r2], %rd1;
$L__BB0_2:
	mov.u32 %r1, 0;
	griddepcontrol.wait;
	ld.global.f32 %f1, [%rd1];
$L__BB0_9:
	ret;
}
"""


def test_parse_reads_registers_and_spills():
    (kernel,) = ptxas_table.parse(OUTPUT, PTX, 90, {})
    assert kernel.registers == 255
    assert kernel.spill_bytes == 20
    assert not kernel.fits()
    fewer = OUTPUT.replace(" 8 bytes spill", " 0 bytes spill")
    assert ptxas_table.parse(fewer, PTX, 90, {})[0].spill_bytes == 12


def test_a_kernel_that_waits_first_is_told_from_one_that_does_not():
    def waits(old="", new="", architecture=90):
        ptx = PTX.replace(old, new)
        return ptxas_table.parse(OUTPUT, ptx, architecture, {})[0].waits_first

    assert waits()
    assert not waits("griddepcontrol.wait;", "")
    assert waits("griddepcontrol.wait;", "", architecture=86)  # nothing starts early there
    for early in (
        "ld.global.f32 %f1, [%rd1];",
        "ld.f32 %f1, [%rd1];",
        "st.global.f32 [%rd1], %f1;",
        "atom.global.add.u32 %r1, [%rd1], 1;",
        "cp.async.cg.shared.global [%r1], [%rd1], 16;",
        "@%p1 bra $L__BB0_9;",
        "call.uni helper, ();",
        "@%p1 ret;",
    ):
        assert not waits("mov.u32 %r1, 0;", early), early


def test_a_kernel_of_head_dim_128_fits_twice():
    one_block = ptxas_table.Kernel(90, "tensor_split<Float16, 128, 1, true>", 255, 0, 120000, 1)
    assert not one_block.fits()
    assert one_block._replace(blocks=2).fits()


def test_a_kernel_of_head_dim_256_fits_twice_where_shared_memory_allows():
    wide = ptxas_table.Kernel(90, "tensor_split<Float16, 256, 1, true>", 255, 0, 73792, 1)
    assert not wide.fits()
    assert wide._replace(blocks=2).fits()
    assert wide._replace(architecture=86).fits()


def test_row_statistics_fit_four_times_where_shared_memory_allows():
    three = ptxas_table.Kernel(90, "tensor_split<Float16, 128, 1, false>", 128, 0, 55000, 3)
    assert not three.fits()
    assert three._replace(blocks=4).fits()
    assert three._replace(architecture=86).fits()


def test_kernels_neither_spill_nor_read_before_they_wait():
    try:
        ptxas_table.find_nvcc()
    except SystemExit as reason:
        pytest.skip(str(reason))
    command = [sys.executable, str(SCRIPT), "--architectures", "86,90", "--files", "bf16_d128"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 kernels, 0 spill or do not fit, 0 do not wait" in result.stdout
