"""The kernels compile for a GPU without spilling; every architecture: ``python ptxas_table.py``."""

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


def test_parse_reads_registers_and_spills():
    (kernel,) = ptxas_table.parse(OUTPUT, 90, {})
    assert kernel.registers == 255
    assert kernel.spill_bytes == 20
    assert not kernel.fits()
    assert ptxas_table.parse(OUTPUT.replace(" 8 bytes spill", " 0 bytes spill"), 90, {})[0][3] == 12


def test_a_kernel_of_head_dim_128_fits_twice():
    one_block = ptxas_table.Kernel(90, "tensor_split<Float16, 128, 1, true>", 255, 0, 120000, 1)
    assert not one_block.fits()
    assert one_block._replace(blocks=2).fits()
    assert one_block._replace(name="tensor_split<Float16, 256, 1, true>").fits()


def test_row_statistics_fit_four_times_where_shared_memory_allows():
    three = ptxas_table.Kernel(90, "tensor_split<Float16, 128, 1, false>", 128, 0, 55000, 3)
    assert not three.fits()
    assert three._replace(blocks=4).fits()
    assert three._replace(architecture=86).fits()


def test_no_kernel_spills():
    try:
        ptxas_table.find_nvcc()
    except SystemExit as reason:
        pytest.skip(str(reason))
    command = [sys.executable, str(SCRIPT), "--architectures", "86,90", "--files", "bf16_d128"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 kernels, 0 spill or do not fit" in result.stdout
