"""row_statistics and reweighted_softmax against the reference."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.ops.cases import (
    DTYPES,
    IMAGE_SETS,
    MASKS,
    attention_case,
    check_accuracy,
    check_gate,
    check_statistics,
)
from vrga_ext import ops, reference


def check_rows(case, dtype):
    def arguments(at):
        chosen = {n: t for n, t in case.arguments(at).items() if n not in ("value", "heads")}
        chosen["query"] = chosen["query"][:, :, 0]
        return chosen

    actual = ops.row_statistics(**arguments(dtype))
    expected = reference.row_statistics(**arguments(torch.float64))
    assert actual.image_attention.dtype == torch.float32
    check_statistics(actual.statistics, expected.statistics)
    torch_run = reference.row_statistics(**arguments(dtype))
    images = (result.image_attention for result in (actual, torch_run, expected))
    check_accuracy(*images, softcap=case.options.get("softcap", 0.0))
    is_image = (case.tensors["key_flags"] & 1).bool()[:, None].expand_as(actual.image_attention)
    assert not actual.image_attention[~is_image].any()
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(simd, dtype):
    for keys, dim in product((1, 16, 63, 64, 65, 300, 2053), (17, 64, 80, 128)):
        check_rows(attention_case(batch=2, keys=keys, dim=dim, dtype=dtype, seed=keys), dtype)
    for group in (1, 2, 3, 5, 7, 8, 12, 16):
        check_rows(attention_case(group=group, keys=111, dtype=dtype), dtype)


@pytest.mark.parametrize("flags", IMAGE_SETS)
def test_rows_of_image_sets_and_masks(simd, flags):
    for mask, dtype in product(MASKS, DTYPES):
        case = attention_case(batch=2, keys=190, flags=flags, mask=mask, dtype=dtype, softcap=30.0)
        check_rows(case, dtype)


def test_rows_equal_decode(simd):
    case = attention_case(batch=2, keys=500, mask="padding", flags="scattered")
    rows = check_rows(case, torch.float32)
    decode = ops.decode_attention(**case.arguments(torch.float32))
    for a, b in zip(rows.statistics, decode.statistics, strict=True):
        assert torch.equal(a, b[:, :, 0])
    inside = rows.image_attention.sum(-1)
    assert (inside[0] > 0).all()
    assert (inside <= 1 + 1e-6).all()


def test_rows_whose_maximum_keeps_moving(simd):
    """Every block of keys has a reference point of its own, and all are brought to one."""
    for order, mask in product((1, -1), ("none", "padding", "bias")):
        case = attention_case(batch=2, keys=1500, dim=32, mask=mask, flags="scattered", seed=order)
        key, query = case.tensors["key"], case.tensors["query"]
        rising = order * torch.linspace(-2.0, 2.0, 1500)[:, None]
        group = query.shape[1] // key.shape[1]
        case.tensors["key"] = key * 0.1 + rising * query[:, ::group, 0].unsqueeze(2)
        rows = check_rows(case, torch.float32)
        peaks = rows.image_attention.amax(-1)
        assert peaks.max() > 10 / 1500


def test_nan_row(simd):
    case = attention_case(keys=100)
    case.tensors["query"][0, 3] = float("nan")
    actual = check_rows(case, torch.float32)
    is_image = (case.tensors["key_flags"][0] & 1).bool()
    assert actual.image_attention[0, 3, is_image].isnan().all()
    assert actual.image_attention[0, [0, 1, 2, 4, 5, 6, 7]].isfinite().all()


def softmax_scores(case, dtype):
    """Scores [B, Hq, Sq, Skv] at fp32 from the tensors of an attention case."""
    query, key = case.tensors["query"].float(), case.tensors["key"].float()
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).mT * query.shape[-1] ** -0.5
    mask = case.tensors.get("attn_mask")
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.to(dtype)


def check_softmax(case, dtype, scores=None):
    scores = softmax_scores(case, dtype) if scores is None else scores
    arguments = {"key_flags": case.tensors["key_flags"], "heads": case.tensors.get("heads")}
    arguments |= case.options
    actual = ops.reweighted_softmax(scores, **arguments)
    expected = reference.reweighted_softmax(scores.double(), **arguments)
    torch_run = reference.reweighted_softmax(scores, **arguments)
    check_statistics(actual.statistics, expected.statistics)
    agree = check_gate(actual, expected, case.options) & (torch_run.gate == expected.gate)
    keep = agree[..., None]
    assert actual.probabilities.dtype == dtype
    check_accuracy(
        actual.probabilities * keep, torch_run.probabilities * keep, expected.probabilities * keep
    )
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(simd, dtype):
    gates = []
    for keys, rows in product((1, 15, 16, 17, 64, 65, 331, 4099), (1, 3)):
        case = attention_case(batch=2, keys=keys, rows=rows, dim=16, dtype=dtype, seed=keys)
        gates.append(check_softmax(case, dtype).gate.flatten())
    assert torch.cat(gates).any()
    assert not torch.cat(gates).all()


@pytest.mark.parametrize("flags", IMAGE_SETS)
def test_softmax_of_image_sets(simd, flags):
    for gate, mask, dtype in product(("dynamic", "static"), ("none", "padding", "causal"), DTYPES):
        case = attention_case(
            batch=2,
            keys=150,
            rows=2,
            flags=flags,
            mask=mask,
            gate=gate,
            some_heads=True,
            focus_weight=2.0,
            image_weight=0.5,
        )
        check_softmax(case, dtype)


def test_softmax_strides(simd):
    """Scores that are a slice of something larger, or transposed."""
    case = attention_case(batch=2, keys=90, rows=3)
    scores = softmax_scores(case, torch.float32)
    wide = torch.randn(2, 8, 3, 200)
    wide[..., 40:130] = scores
    check_softmax(case, torch.float32, wide[..., 40:130])
    check_softmax(case, torch.float32, scores.mT.contiguous().mT)
    check_softmax(case, torch.float32, scores.transpose(0, 2).contiguous().transpose(0, 2))


def test_exponential_is_accurate(simd):
    """Relative error of single probabilities from 1 down to e^-87."""
    scores = torch.linspace(-87.0, 0.0, 4001)[None, None, None]
    flags = torch.zeros(1, 0, dtype=torch.uint8)
    actual = ops.reweighted_softmax(scores, flags).probabilities.double()
    expected = torch.softmax(scores.double(), -1)
    large = expected > 1.2e-38  # normal numbers
    assert large.sum() > 3500
    assert ((actual - expected).abs() / expected)[large].max() < 4e-7
