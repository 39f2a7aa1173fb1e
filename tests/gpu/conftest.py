"""``simd`` for the tests of the operations: CPU tensors go to the GPU and the results come back."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

OPERATIONS = ("decode_attention", "row_statistics", "reweighted_softmax")


def to_gpu(argument: Any) -> Any:
    """The same tensor on the GPU, with its strides, offset and shared elements."""
    if not isinstance(argument, Tensor):
        return argument
    flat = torch.empty(0, dtype=argument.dtype).set_(argument.untyped_storage())
    layout = (argument.size(), argument.stride(), argument.storage_offset())
    return flat.cuda().as_strided(*layout)


@pytest.fixture
def threads() -> None:
    """Torch's number of CPU threads means nothing here."""


@pytest.fixture
def simd(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In place of the instruction sets of the CPU kernels."""
    from vrga_ext import _library

    def route(name: str):
        operation = getattr(torch.ops.vrga_ext, name).default

        def call(*arguments):
            return tuple(result.cpu() for result in operation(*map(to_gpu, arguments)))

        return SimpleNamespace(default=call)

    for name in OPERATIONS:
        replacement = route(name)
        monkeypatch.setattr(torch.ops.vrga_ext, name, replacement)
        monkeypatch.setattr(_library, name, replacement.default)
    return "cuda"
