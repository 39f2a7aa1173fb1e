"""``emulated``: the operations run the CUDA kernels on the emulator for the length of a test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from tests.emulator import build
from tests.ops.conftest import threads  # noqa: F401 (a fixture)

OPERATIONS = ("decode_attention", "row_statistics", "reweighted_softmax")


@pytest.fixture(scope="session")
def emulator_library() -> str:
    """Path of the library; registers ``torch.ops.vrga_emulated``."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    path = str(build.build_operations())
    torch.ops.load_library(path)
    return path


def route_to(namespace: str, patch: pytest.MonkeyPatch) -> list[str]:
    """Replace ``torch.ops.vrga_ext`` while ``patch`` lives; returns the growing list of calls."""
    from vrga_ext import _library

    calls: list[str] = []

    def route(name: str):
        operation = getattr(getattr(torch.ops, namespace), name).default

        def call(*arguments):
            calls.append(name)
            return operation(*arguments)

        return SimpleNamespace(default=call)

    for name in OPERATIONS:
        replacement = route(name)
        patch.setattr(torch.ops.vrga_ext, name, replacement)
        patch.setattr(_library, name, replacement.default)
    return calls


@pytest.fixture
def emulated(emulator_library: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return route_to("vrga_emulated", monkeypatch)


@pytest.fixture
def simd(emulated: list[str]) -> Iterator[str]:
    """In place of the instruction sets of the CPU kernels."""
    yield "emulator"
    assert emulated
