"""Strides, repeatability, threads."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import DTYPES, attention_case, check_decode
from vrga_ext import ops


def outputs(case, dtype=torch.float32):
    result = ops.decode_attention(**case.arguments(dtype))
    return [result.output, *result.statistics, result.gate]


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_change_nothing(simd, dtype):
    case = attention_case(batch=2, rows=2, keys=140, dtype=dtype)
    expected = outputs(case, dtype)
    key, value, query = (case.tensors[n] for n in ("key", "value", "query"))

    def cache_slice(t):  # the first 140 rows of a longer static cache
        cache = torch.full((2, 2, 300, t.shape[-1]), float("nan"), dtype=dtype)
        cache[:, :, :140] = t
        return cache[:, :, :140]

    def sequence_first(t):  # [B, S, H, D] in memory
        return t.transpose(1, 2).contiguous().transpose(1, 2)

    def column_major(t):  # last dimension not contiguous: copied by the operation
        return t.mT.contiguous().mT

    def expanded(t):  # one sample shared by the batch
        return t[:1].expand(2, -1, -1, -1)

    for change in (cache_slice, sequence_first, column_major):
        case.tensors |= {"key": change(key), "value": change(value)}
        assert all(map(torch.equal, outputs(case, dtype), expected)), change.__name__
    case.tensors["query"] = sequence_first(query)
    assert all(map(torch.equal, outputs(case, dtype), expected))
    case.tensors |= {"key": expanded(key), "value": expanded(value)}
    check_decode(case, dtype)


def test_odd_alignment(simd):
    """Rows that start at any element."""
    case = attention_case(keys=70, dim=33)
    expected = outputs(case)
    for name in ("query", "key", "value"):
        t = case.tensors[name]
        shifted = torch.zeros(t.numel() + 1)[1:].view(t.shape)
        shifted.copy_(t)
        case.tensors[name] = shifted
    assert all(map(torch.equal, outputs(case), expected))


@pytest.mark.parametrize("names", [("query",), ("key",), ("value",), ("query", "key", "value")])
@pytest.mark.parametrize("elements", [1, 2, 4])
def test_alignment_of_halves(simd, names, elements):
    """Whole words of memory are wanted by some kernels: others serve what does not start at one."""
    case = attention_case(keys=150, dtype=torch.bfloat16)
    for name in names:
        t = case.tensors[name]
        shifted = torch.zeros(t.numel() + elements, dtype=t.dtype)[elements:].view(t.shape)
        case.tensors[name] = shifted.copy_(t)
    check_decode(case, torch.bfloat16)


def test_flags_with_strides(simd):
    case = attention_case(batch=2, keys=100, flags="scattered")
    expected = outputs(case)
    flags = case.tensors["key_flags"]
    case.tensors["key_flags"] = torch.cat([flags, flags], 1)[:, :100]
    assert all(map(torch.equal, outputs(case), expected))
    case.tensors["key_flags"] = flags.repeat_interleave(2, 1)[:, ::2]
    assert all(map(torch.equal, outputs(case), expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_repeat_bit_for_bit(simd, dtype, threads):
    """Whatever the number of threads: splits and their order follow from the shape alone."""
    case = attention_case(batch=2, keys=3000, group=7, dtype=dtype, mask="padding")
    torch.set_num_threads(1)
    expected = outputs(case, dtype)
    for count in (1, 2, 2, 3, 5):
        torch.set_num_threads(count)
        assert torch.get_num_threads() == count
        assert all(map(torch.equal, outputs(case, dtype), expected)), count


def test_levels_agree():
    """Instruction sets differ in rounding only."""
    case = attention_case(keys=777, group=5)
    before = ops.simd_level()
    results = []
    try:
        for name in torch.ops.vrga_ext._simd_levels().split():
            if not name.startswith("("):
                ops.simd_level(name)
                results.append(outputs(case))
    finally:
        ops.simd_level(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
