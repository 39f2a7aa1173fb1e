"""The recordings of the authors' code, with every operation on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.adapter.test_oracle import *  # noqa: F403
from tests.gpu.conftest import route_to_gpu
from tests.gpu.marks import NEEDS_GPU

pytestmark = NEEDS_GPU


@pytest.fixture(autouse=True, scope="module")
def operations_on_the_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        route_to_gpu(patch)
        yield
