"""``simd`` for the tests of the operations: CPU tensors go to the GPU and the results come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops import cases
from tests.ops.conftest import threads  # noqa: F401 (a fixture)

OPERATIONS = ("decode_attention", "row_statistics", "reweighted_softmax")


def to_gpu(argument: Any) -> Any:
    """The same tensor on the GPU, with its strides, offset and shared elements."""
    if not isinstance(argument, Tensor):
        return argument
    flat = torch.empty(0, dtype=argument.dtype).set_(argument.untyped_storage())
    layout = (argument.size(), argument.stride(), argument.storage_offset())
    return flat.cuda().as_strided(*layout)


def route_to_gpu(patch: pytest.MonkeyPatch) -> None:
    """Operations on CPU tensors run on the GPU while ``patch`` lives."""
    from vrga_ext import _library

    def route(name: str):
        operation = getattr(torch.ops.vrga_ext, name).default

        def call(*arguments):
            return tuple(result.cpu() for result in operation(*map(to_gpu, arguments)))

        return SimpleNamespace(default=call)

    for name in OPERATIONS:
        replacement = route(name)
        patch.setattr(torch.ops.vrga_ext, name, replacement)
        patch.setattr(_library, name, replacement.default)


@pytest.fixture
def simd(monkeypatch: pytest.MonkeyPatch) -> str:
    """In place of the instruction sets of the CPU kernels."""
    # Of CUDA's tanhf two ulps are right, and a soft-cap multiplies them to a score of 30.
    monkeypatch.setattr(cases, "SOFTCAP_ULPS", 10.0)
    route_to_gpu(monkeypatch)
    return "cuda"
