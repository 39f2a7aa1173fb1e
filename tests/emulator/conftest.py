"""``emulated``: the operations run the CUDA kernels on the emulator for the length of a test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from tests.emulator import build

OPERATIONS = ("decode_attention", "row_statistics", "reweighted_softmax")


@pytest.fixture(scope="session")
def emulator_library() -> str:
    """Path of the library; registers ``torch.ops.vrga_emulated``."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    path = str(build.build_operations())
    torch.ops.load_library(path)
    return path


@pytest.fixture
def emulated(emulator_library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Routes ``torch.ops.vrga_ext`` to the emulator; yields the names of the calls made."""
    import vrga_ext.ops  # noqa: F401  registers what is replaced

    calls: list[str] = []

    def route(name: str):
        operation = getattr(torch.ops.vrga_emulated, name)

        def call(*arguments):
            calls.append(name)
            return operation(*arguments)

        return call

    for name in OPERATIONS:
        monkeypatch.setattr(torch.ops.vrga_ext, name, route(name))
    yield calls


@pytest.fixture
def threads() -> None:
    """The machine is one thread; tests that change torch's number of threads change nothing here."""


@pytest.fixture
def simd(emulated: list[str]) -> Iterator[str]:
    """In place of the instruction sets of the CPU kernels."""
    yield "emulator"
    assert emulated
