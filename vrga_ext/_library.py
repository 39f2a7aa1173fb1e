"""Loads the compiled operations and says what their results look like while tracing."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor


def _load() -> None:
    spec = importlib.util.find_spec("vrga_ext._ops")
    if spec is None or spec.origin is None:
        raise ImportError(
            "vrga_ext has no compiled operations here (a source folder that was never built?); "
            "run `pip install .` in the repository"
        )
    torch.ops.load_library(spec.origin)


_load()

decode_attention: Any = torch.ops.vrga_ext.decode_attention.default
row_statistics: Any = torch.ops.vrga_ext.row_statistics.default
reweighted_softmax: Any = torch.ops.vrga_ext.reweighted_softmax.default


def has_cuda_kernels() -> bool:
    from vrga_ext import _build_info

    return _build_info.cuda_architectures != ""


@torch.library.register_fake("vrga_ext::decode_attention")
def _decode_attention(
    query: Tensor, key: Tensor, value: Tensor, key_flags: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    rows = query.shape[:3]
    statistics = query.new_empty((*rows, 4), dtype=torch.float32)
    return query.new_empty((*rows, value.shape[3])), statistics


@torch.library.register_fake("vrga_ext::row_statistics")
def _row_statistics(
    query: Tensor, key: Tensor, key_flags: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    heads = query.shape[:2]
    image_attention = query.new_empty((*heads, key_flags.shape[1]), dtype=torch.float32)
    return image_attention, query.new_empty((*heads, 3), dtype=torch.float32)


@torch.library.register_fake("vrga_ext::reweighted_softmax")
def _reweighted_softmax(scores: Tensor, key_flags: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    statistics = scores.new_empty((*scores.shape[:3], 4), dtype=torch.float32)
    return scores.new_empty(scores.shape), statistics
