"""A chain of calls in which each kernel reads what the one before it has written.

Kernels are launched so that they may start before their predecessor has ended. As a program it runs
the chain and saves the results: under ``CUDA_LAUNCH_BLOCKING=1``, no two kernels overlap.

    CUDA_LAUNCH_BLOCKING=1 python -m tests.gpu.overlap FILE
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from tests.ops.cases import attention_case
from vrga_ext import ops

DTYPES = (torch.bfloat16, torch.float32)  # tensor cores, and the plain kernels


def inputs(dtype: torch.dtype, device: str) -> list[Tensor]:
    """Query, key, value and flags, the same in every process."""
    case = attention_case(keys=2000, group=7, dim=128, dtype=dtype).arguments(dtype)
    return [case[name].to(device) for name in ("query", "key", "value", "key_flags")]


def chain(start: Tensor, key: Tensor, value: Tensor, flags: Tensor, length: int) -> list[Tensor]:
    """The last query and the sum of all results; nothing waits between the four operations."""
    query, total = start.clone(), torch.zeros((), device=start.device)
    for _ in range(length):
        first = ops.decode_attention(query, key, value, flags)
        second = ops.decode_attention(first.output, key, value, flags)
        rows = ops.row_statistics(second.output[:, :, 0], key, flags)
        softmax = ops.reweighted_softmax(rows.image_attention[:, :, None], flags)
        # Sharp enough that no two rounds are alike: a stale row would show.
        torch.mul(second.output.roll(1, 1), 300, out=query)
        total += second.statistics.image_ratio.sum() + rows.statistics.image_ratio.sum()
        total += rows.image_attention.amax() + softmax.probabilities.amax()
    return [query, total]


if __name__ == "__main__":
    torch.save([chain(*inputs(dtype, "cuda"), length=100) for dtype in DTYPES], sys.argv[1])
