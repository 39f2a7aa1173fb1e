"""A test that takes ``simd`` runs once per compiled instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vrga_ext import ops

LEVELS = [name for name in torch.ops.vrga_ext._simd_levels().split() if not name.startswith("(")]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=LEVELS)
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.simd_level()
    assert ops.simd_level(request.param) == request.param
    yield request.param
    ops.simd_level(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the thread count back to the others."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
