"""The tensor-core kernels where the CPU tests do not go: every head dim with every group."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

from tests.ops.cases import MASKS, attention_case, check_decode
from vrga_ext import ops
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG

HALVES = [torch.bfloat16, torch.float16]
WEIGHTS = [
    {"focus_weight": 1.5, "image_weight": 1.0},
    {"focus_weight": 1.0, "image_weight": 0.0},
    {"focus_weight": 2.0, "image_weight": 0.5, "gate": "static", "some_heads": True},
]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_groups(simd, dim, dtype):
    masks, weights = cycle(MASKS), cycle(WEIGHTS)
    for group in range(1, 17):
        case = attention_case(
            batch=2,
            heads_kv=1 + group % 2,
            group=group,
            keys=100 + 9 * group,
            dim=dim,
            mask=next(masks),
            flags="scattered",
            seed=group,
            dtype=dtype,
            **next(weights),
        )
        check_decode(case, dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_rows_of_drafted_tokens(simd, dim, dtype):
    for group, rows in ((1, 8), (2, 4), (3, 3), (4, 8), (7, 2), (16, 2)):
        for mask in ("causal", "heads"):
            case = attention_case(
                heads_kv=2, group=group, rows=rows, keys=131, dim=dim, mask=mask, dtype=dtype
            )
            check_decode(case, dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("group", [7, 12])
def test_lengths_around_tiles_and_rings(simd, group, dtype):
    for keys in (1, 15, 16, 17, 48, 63, 64, 65, 129, 255, 385, 1024, 1537):
        check_decode(
            attention_case(heads_kv=1, group=group, keys=keys, dim=128, dtype=dtype), dtype
        )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("gap", [8.0, 14.0, 30.0])
def test_keys_far_below_the_removed_ones(simd, gap, dtype):
    """Mask mode where the kept keys hold e^-gap of the mass: their average has to survive."""
    case = attention_case(
        heads_kv=1, group=2, keys=90, dim=64, dtype=dtype, gate="static", image_weight=0.0
    )
    bias = torch.zeros(1, 1, 1, 90)
    bias[..., :30] = gap
    flags = torch.zeros(1, 90, dtype=torch.uint8)
    flags[:, :30] = IMAGE_FLAG
    case.tensors |= {"attn_mask": bias, "key_flags": flags, "query": case.tensors["query"] / 16}
    result = check_decode(case, dtype)
    assert result.gate.all()


@pytest.mark.parametrize("weight", [1e-3, 3e5])
def test_weights_beyond_the_range_of_fp16(simd, weight):
    dtype = torch.float16
    case = attention_case(
        heads_kv=1, group=4, keys=120, dim=64, dtype=dtype, gate="static", focus_weight=weight
    )
    result = check_decode(case, dtype)
    assert result.output.isfinite().all()


@pytest.mark.parametrize("weight", [1 / 256, 128.0])
@pytest.mark.parametrize("step", [2.0, 5.4, 5.6])
def test_largest_weights_of_fp16_where_the_maximum_keeps_moving(simd, weight, step):
    """Scores that rise by almost the 2^8 (e^5.55) by which p may exceed 1, and by just more."""
    dtype = torch.float16
    case = attention_case(
        heads_kv=1, group=4, keys=640, dim=64, dtype=dtype, gate="static", focus_weight=weight
    )
    flags = torch.full((1, 640), IMAGE_FLAG, dtype=torch.uint8)
    flags[:, ::2] |= FOCUS_FLAG
    bias = (torch.arange(640) // 64 * step)[None, None, None]
    query = case.tensors["query"] / 64
    case.tensors |= {"attn_mask": bias, "key_flags": flags, "query": query}
    result = check_decode(case, dtype)
    assert result.output.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_infinite_scores_and_values(simd, dtype):
    """Overflow shows where it happens and nowhere else."""
    case = attention_case(batch=2, heads_kv=2, group=3, keys=80, dim=64)
    made = case.arguments(dtype)
    made["value"][0, 1, 40] = torch.inf
    made["query"][1, 0] = torch.finfo(dtype).max
    result = ops.decode_attention(**made)
    assert result.output[0, :3].isfinite().all()
    assert not result.output[0, 3:].isfinite().any()
    assert result.output[1, 1:].isfinite().all()


def test_results_repeat_bit_for_bit_in_any_lane_order(simd):
    """Every launch draws another order of lanes, warps and blocks."""
    case = attention_case(batch=2, group=7, keys=700, dim=128, mask="padding")
    case.tensors["key_flags"][:, ::5] |= FOCUS_FLAG
    arguments = case.arguments(torch.bfloat16)
    first = ops.decode_attention(**arguments)
    for _ in range(3):
        again = ops.decode_attention(**arguments)
        assert torch.equal(again.output, first.output)
        assert all(map(torch.equal, again.statistics, first.statistics))
