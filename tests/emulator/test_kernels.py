"""`check_kernels` under the sanitizers, and faults that it has to notice."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.emulator import build, faults

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def run_check(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A library preloaded for Python has no business here.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    result = run(str(path), *arguments)
    if "unexpected memory mapping" in result.stderr and shutil.which("setarch"):
        # Older ThreadSanitizers know fewer bits of address randomisation than newer kernels use.
        result = run("setarch", "-R", str(path), *arguments)
    return result


def test_kernels_agree_with_plain_loops():
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    result = run_check(build.build_check("check", flags))
    assert result.returncode == 0, result.stderr
    assert "0 failures" in result.stdout


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers_are_silent():
    result = run_check(build.build_check("check-asan", faults.BUILDS["asan"]))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.slow
def test_thread_sanitizer_is_silent(tmp_path):
    csrc = faults.plant(None, tmp_path)
    check = faults.build_small_check("check-tsan", csrc, faults.BUILDS["tsan"])
    result = run_check(check, "--small")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_planted_fault_is_noticed(fault, tmp_path):
    csrc = faults.plant(fault, tmp_path)
    check = faults.build_small_check(
        f"fault-{fault.noticed_by}", csrc, faults.BUILDS[fault.noticed_by]
    )
    result = run_check(check, "--small")
    assert result.returncode != 0
    if fault.noticed_by == "tsan":
        assert "WARNING: ThreadSanitizer: data race" in result.stderr
    if fault.noticed_by == "asan":
        assert "ERROR: AddressSanitizer" in result.stderr
