"""decode_attention against the reference: shapes, image sets, masks, gates."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.ops.cases import DTYPES, IMAGE_SETS, MASKS, attention_case, check_decode
from vrga_ext import ops

GATES = {
    "boost": {"focus_weight": 1.5, "image_weight": 1.0},
    "mask": {"focus_weight": 1.0, "image_weight": 0.0},
    "both": {"focus_weight": 3.0, "image_weight": 0.25},
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_key_lengths(simd, dtype):
    """Blocks are 64 keys, splits at least 256: around both, primes, and a long one."""
    opened = closed = 0
    for keys in (1, 2, 15, 16, 17, 63, 64, 65, 127, 257, 511, 512, 513, 1021, 4099):
        result = check_decode(attention_case(keys=keys, dtype=dtype, seed=keys), dtype)
        opened += int(result.gate.sum())
        closed += int((~result.gate).sum())
    assert opened > 5
    assert closed > 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "top"), [(32, 0.5), (32, 2.0), (32, 20.0), (64, 2.0), (64, 20.0)])
def test_scores_that_rise_along_the_keys(simd, dtype, dim, top):
    """The reference point of a row follows its maximum at some distance, or block by block."""
    case = attention_case(keys=1000, dim=dim, flags="scattered", dtype=dtype)
    query, key = case.tensors["query"].float(), case.tensors["key"].float()
    rising = torch.linspace(-top, top, 1000)[:, None] * query[:, ::4]
    case.tensors["key"] = (0.1 * key + rising).to(dtype)
    check_decode(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_and_rows(simd, dtype):
    for group in range(1, 17):
        case = attention_case(group=group, heads_kv=3, keys=97, dim=32, dtype=dtype, seed=group)
        check_decode(case, dtype)
    for group, rows in ((1, 2), (7, 3), (8, 8), (5, 13), (8, 20), (16, 33)):
        case = attention_case(group=group, rows=rows, keys=75, dim=32, dtype=dtype, mask="causal")
        check_decode(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_dims(simd, dtype):
    for dim, dim_v in (
        *((d, d) for d in (1, 7, 16, 17, 31, 32, 48, 64, 80, 96, 127, 128, 160, 256)),
        *((64, 128), (192, 128), (128, 17), (33, 80)),
    ):
        case = attention_case(dim=dim, dim_v=dim_v, group=7, keys=70, dtype=dtype, seed=dim)
        check_decode(case, dtype)


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("flags", IMAGE_SETS)
def test_image_sets(simd, flags, mode):
    for gate, dtype in product(("dynamic", "static"), DTYPES):
        case = attention_case(
            batch=2, flags=flags, keys=200, dtype=dtype, gate=gate, some_heads=True, **GATES[mode]
        )
        result = check_decode(case, dtype)
        if flags in ("empty", "none", "odd"):
            assert not any(s.any() for s in result.statistics)
            assert result.gate.any() == (gate == "static")
        heads = case.tensors["heads"][..., None].expand_as(result.gate)
        assert not result.gate[~heads].any()
        if gate == "static":
            assert result.gate[heads].all()


@pytest.mark.parametrize("mask", MASKS)
def test_masks(simd, mask):
    for rows, dtype in product((1, 3), DTYPES):
        case = attention_case(
            batch=2, rows=rows, group=3, keys=333, mask=mask, flags="scattered", dtype=dtype
        )
        check_decode(case, dtype)


@pytest.mark.parametrize("softcap", [1.0, 20.0, 50.0])
def test_softcap_and_scale(simd, softcap):
    for mask, dtype in product(("none", "bias"), DTYPES):
        case = attention_case(keys=150, dtype=dtype, mask=mask, softcap=softcap, scale=0.3)
        check_decode(case, dtype)


@pytest.mark.parametrize("scale", [0.0, -0.4])
def test_scale_of_any_sign(simd, scale):
    check_decode(attention_case(keys=70, scale=scale), torch.float32)


def test_flags_of_each_sample_are_its_own(simd):
    case = attention_case(batch=3, keys=190, flags="scattered")
    together = check_decode(case, torch.float32)
    for b in range(3):
        alone = ops.decode_attention(**{n: t[b : b + 1] for n, t in case.tensors.items()})
        torch.testing.assert_close(alone.output, together.output[b : b + 1])
        assert torch.equal(alone.gate, together.gate[b : b + 1])


@pytest.mark.parametrize(("min_ratio", "entropy_factor"), [(0.0, 0.0), (0.6, 0.2), (1.1, 0.5)])
def test_thresholds(simd, min_ratio, entropy_factor):
    case = attention_case(
        heads_kv=4, keys=400, rows=4, min_ratio=min_ratio, entropy_factor=entropy_factor
    )
    result = check_decode(case, torch.float32)
    assert result.gate.any()
    assert min_ratio == 0.0 or not result.gate.all()


def test_weight_one_changes_nothing(simd):
    case = attention_case(keys=300, gate="static", focus_weight=1.0, image_weight=1.0)
    plain = attention_case(keys=300, flags="none")
    gated = ops.decode_attention(**case.arguments(torch.float32))
    # The keys of `plain` differ: only the operation without flags on the same tensors is compared.
    plain.tensors = case.tensors | {"key_flags": plain.tensors["key_flags"]}
    assert torch.equal(gated.output, ops.decode_attention(**plain.arguments(torch.float32)).output)
