"""The tests of the CPU kernels, on those for AVX-512 and AMX, whatever the machine has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from tests.emulator import build
from tests.emulator.conftest import route_to
from tests.ops.test_decode import *  # noqa: F403
from tests.ops.test_edges import *  # noqa: F403
from tests.ops.test_extremes import *  # noqa: F403
from tests.ops.test_layout import *  # noqa: F403
from tests.ops.test_statistics import *  # noqa: F403

pytestmark = pytest.mark.slow  # a minute to compile


@pytest.fixture(scope="module")
def library() -> None:
    """Registers ``torch.ops.vrga_avx512``."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("the loops are compiled for AVX2")
    torch.ops.load_library(str(build.build_avx512_operations()))


@pytest.fixture(params=build.AVX512_LEVELS)
def simd(
    request: pytest.FixtureRequest, library: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    calls = route_to("vrga_avx512", monkeypatch)
    assert torch.ops.vrga_avx512._simd_level(request.param) == request.param
    yield request.param
    assert calls
