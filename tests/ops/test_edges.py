"""The defined edge cases of all three operations."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import (
    DTYPES,
    attention_case,
    check_accuracy,
    check_decode,
    check_gate,
    check_statistics,
    max_error,
)
from vrga_ext import ops, reference
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("keys", [40, 600])
def test_values_without_columns(simd, keys):
    case = attention_case(keys=keys, dim_v=0)
    result = ops.decode_attention(**case.arguments(torch.float32))
    expected = reference.decode_attention(**case.arguments(torch.float64))
    assert result.output.shape == (1, 8, 1, 0)
    check_statistics(result.statistics, expected.statistics)
    check_gate(result, expected, case.options)


@pytest.mark.parametrize(("batch", "heads", "rows"), [(0, 4, 1), (2, 0, 1), (2, 4, 0)])
def test_no_rows(simd, batch, heads, rows):
    query, key = torch.randn(batch, heads, rows, 8), torch.randn(batch, 2, 70, 8)
    flags = torch.full((batch, 70), IMAGE_FLAG, dtype=torch.uint8)
    result = ops.decode_attention(query, key, key, flags)
    assert result.output.shape == (batch, heads, rows, 8)
    assert result.gate.shape == (batch, heads, rows)
    softmax = ops.reweighted_softmax(torch.randn(batch, heads, rows, 70), flags)
    assert softmax.probabilities.shape == (batch, heads, rows, 70)
    if rows == 1:
        image = ops.row_statistics(query[:, :, 0], key, flags)
        assert image.image_attention.shape == (batch, heads, 70)


@pytest.mark.parametrize("scale", [None, 2.0])
def test_queries_without_columns(simd, scale):
    """All scores are 0."""
    case = attention_case(keys=70, dim=0, dim_v=5)
    case.options["scale"] = scale
    check_decode(case, torch.float32)


@pytest.mark.parametrize("gate", ["static", "dynamic"])
def test_no_attended_key(simd, gate):
    case = attention_case(batch=2, keys=100, gate=gate)
    mask = torch.ones(2, 1, 1, 100, dtype=torch.bool)
    mask[1] = False
    case.tensors["attn_mask"] = mask
    result = check_decode(case, torch.float32)
    assert not result.output[1].any()
    assert not result.gate[1].any()
    assert not any(s[1].any() for s in result.statistics)
    assert result.output[0].any()
    assert result.gate[0].any()


def test_no_keys(simd):
    flags = torch.zeros(2, 0, dtype=torch.uint8)
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 0, 8)
    result = ops.decode_attention(q, k, torch.randn(2, 2, 0, 5), flags, gate="static")
    assert result.output.shape == (2, 4, 3, 5)
    assert not result.output.any()
    assert not result.gate.any()
    rows = ops.row_statistics(q[:, :, 0], k, flags)
    assert rows.image_attention.shape == (2, 4, 0)
    assert not rows.statistics.image_ratio.any()
    softmax = ops.reweighted_softmax(torch.randn(2, 4, 3, 0), flags, gate="static")
    assert softmax.probabilities.shape == (2, 4, 3, 0)
    assert not softmax.gate.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unused_rows_of_a_cache_may_hold_anything(simd, dtype):
    """Keys that nobody attends to: unused rows of a static cache, left padding."""
    case = attention_case(batch=2, keys=200, rows=2, dtype=dtype, flags="full")
    mask = torch.zeros(2, 1, 1, 200, dtype=torch.bool)
    mask[0, ..., 3:70] = True
    mask[1, ..., 80:81] = True
    case.tensors["attn_mask"] = mask
    clean = ops.decode_attention(**case.arguments(dtype))
    check_decode(case, dtype)
    rubbish = torch.tensor([NAN, INF, -INF, NAN]).repeat(50)[None, None, :, None]
    for name in ("key", "value"):
        case.tensors[name] = torch.where(mask[:, :, 0, :, None], case.tensors[name], rubbish)
    dirty = ops.decode_attention(**case.arguments(dtype))
    assert torch.equal(clean.output, dirty.output)
    assert torch.equal(clean.statistics.image_ratio, dirty.statistics.image_ratio)
    rows = {n: t for n, t in case.arguments(dtype).items() if n != "value"}
    rows["query"] = rows["query"][:, :, 0]
    assert ops.row_statistics(**rows).image_attention.isfinite().all()


def test_one_row_may_skip_what_another_reads(simd):
    """A NaN key reaches exactly the rows that attend to it."""
    case = attention_case(keys=100, group=2, heads_kv=1, rows=3)
    mask = torch.ones(3, 100, dtype=torch.bool)
    mask[0, 40:] = mask[2, 55] = False
    case.tensors["attn_mask"] = mask
    case.tensors["key"][:, :, 55] = NAN
    result = check_decode(case, torch.float32)
    assert result.output[:, :, 1].isnan().all()
    assert result.output[:, :, (0, 2)].isfinite().all()
    assert not result.gate[:, :, 1].any()


@pytest.mark.parametrize("gate", ["static", "dynamic"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_query_stays_in_its_row(simd, dtype, gate):
    case = attention_case(rows=2, keys=80, dtype=dtype, gate=gate)
    clean = ops.decode_attention(**case.arguments(dtype))
    case.tensors["query"][0, 2, 1, 5] = NAN
    result = check_decode(case, dtype)
    assert result.output[0, 2, 1].isnan().all()
    for statistic in result.statistics:
        assert statistic[0, 2, 1].isnan()
    assert bool(result.gate[0, 2, 1]) == (gate == "static")
    others = torch.ones(1, 8, 2, dtype=torch.bool)
    others[0, 2, 1] = False
    assert torch.equal(result.output[others], clean.output[others])


def test_nan_key_stays_in_its_kv_head(simd):
    case = attention_case(batch=2, keys=80)
    case.tensors["key"][1, 0, 79, 63] = NAN
    result = check_decode(case, torch.float32)
    assert result.output[1, :4].isnan().all()
    assert result.output[1, 4:].isfinite().all()
    assert result.output[0].isfinite().all()


def test_image_mass_that_underflows(simd):
    """All image keys far below the best text key: R and H are 0, the dynamic gate is closed."""
    q = torch.ones(1, 1, 1, 4)
    k = torch.zeros(1, 1, 40, 4)
    k[:, :, 20:] = -500.0
    flags = torch.zeros(1, 40, dtype=torch.uint8)
    flags[:, 20:] = IMAGE_FLAG | FOCUS_FLAG
    for gate in ("dynamic", "static"):
        result = ops.decode_attention(
            q, k, torch.randn(1, 1, 40, 4), flags, gate=gate, min_ratio=-1.0, entropy_factor=-1.0
        )
        assert not any(s.any() for s in result.statistics)
        expected = reference.decode_attention(
            q.double(), k.double(), torch.zeros(1, 1, 40, 4).double(), flags, gate=gate
        )
        assert expected.statistics.image_ratio < 1e-100


def test_weights_that_remove_every_key(simd):
    """Mask mode on a head that sees only masked tokens: it stays as it was."""
    case = attention_case(keys=90, gate="static", focus_weight=0.0, image_weight=0.0, flags="full")
    result = check_decode(case, torch.float32)
    assert not result.gate.any()
    flags = torch.zeros(1, 90, dtype=torch.uint8)
    plain = ops.decode_attention(**(case.tensors | {"key_flags": flags}))
    torch.testing.assert_close(result.output, plain.output)


def test_weights_that_remove_nearly_every_key(simd):
    """One text key keeps 1e-9 of the mass: nothing may cancel."""
    q, k = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 130, 1)
    k[0, 0, 77] = -25.0
    v = torch.randn(1, 1, 130, 16)
    flags = torch.full((1, 130), IMAGE_FLAG, dtype=torch.uint8)
    flags[0, 77] = 0
    result = ops.decode_attention(q, k, v, flags, gate="static", focus_weight=1.0, image_weight=0.0)
    assert result.gate.all()
    torch.testing.assert_close(result.output[0, 0, 0], v[0, 0, 77])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gap", "open_"), [(60, 1), (69, 1), (70, 0), (88, 0), (103, 0), (110, 0)])
def test_mask_mode_where_the_rest_underflows(simd, dtype, gap, open_):
    """Text e^-gap of the image: its head is reweighted as long as 2^-100 of its mass is left."""
    case = attention_case(heads_kv=1, group=2, keys=300, flags="short", scale=1.0)
    case.tensors["query"] = torch.zeros(1, 2, 1, 64)
    case.tensors["query"][..., 0] = 1.0
    case.tensors["key"] = torch.zeros(1, 1, 300, 64)
    case.tensors["key"][:, :, 150:, 0] = -gap
    gate = {"gate": "static", "focus_weight": 1.0, "image_weight": 0.0}
    case.tensors["key_flags"].fill_(IMAGE_FLAG)
    case.options |= gate
    result = check_decode(case, dtype)
    assert result.gate.eq(open_).all()
    scores = case.tensors["query"] @ case.tensors["key"].mT
    flags = case.tensors["key_flags"]
    softmax = ops.reweighted_softmax(scores.to(dtype), flags, **gate)
    expected = reference.reweighted_softmax(scores.double(), flags, **gate)
    same_dtype = reference.reweighted_softmax(scores.to(dtype), flags, **gate)
    assert softmax.gate.eq(open_).all()
    check_accuracy(softmax.probabilities, same_dtype.probabilities, expected.probabilities)


@pytest.mark.parametrize("gap", [60, 69, 70, 95, 104])
def test_statistics_where_the_image_underflows(simd, gap):
    """H_img is log n as long as the image has 2^-100 of the mass; from there on all are 0."""
    query, key = torch.ones(1, 1, 1), torch.zeros(1, 1, 600, 1)
    key[:, :, :300] = -gap
    flags = torch.full((1, 300), IMAGE_FLAG, dtype=torch.uint8)
    result = ops.row_statistics(query, key, flags, scale=1.0)
    expected = reference.row_statistics(query.double(), key.double(), flags, scale=1.0)
    check_statistics(result.statistics, expected.statistics)
    assert (result.statistics.image_entropy != 0) == (gap < 70)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_key_that_outweighs_all_others(simd, dtype):
    """Found late, when the reference point is not far below it: its weight is 1, not nearly 1."""
    case = attention_case(heads_kv=1, group=8, keys=100, scale=1.0)
    case.tensors["query"] = torch.ones(1, 8, 1, 64)
    case.tensors["key"] = torch.zeros(1, 1, 100, 64)
    case.tensors["key"][:, :, 0] = 0.5
    case.tensors["key"][:, :, 70] = 0.6171875
    case.tensors["value"] = case.tensors["value"].to(dtype).float()
    check_decode(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_ten_thousand(simd, dtype):
    """Integers whose dot products are exact in fp32, so that only the softmax can err."""
    generator = torch.Generator().manual_seed(5)
    shape = {"query": (1, 6, 2, 16), "key": (1, 2, 300, 16)}
    case = attention_case(heads_kv=2, group=3, rows=2, keys=300, dim=16, dim_v=32, scale=2.0)
    for name, size in shape.items():
        case.tensors[name] = torch.randint(-32, 33, size, generator=generator).float()
    case.tensors["key"][:, :, ::7] = case.tensors["key"][:, :, 3:4]  # ties
    case.tensors["value"] = case.tensors["value"].to(dtype).float()
    scores = 2.0 * case.tensors["query"] @ case.tensors["key"].repeat_interleave(3, 1).mT
    assert scores.max() > 8e3
    assert scores.min() < -8e3
    check_decode(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_edges(simd, dtype):
    """One masked, one NaN, one +inf and one ordinary row; lowest finite counts as masked."""
    scores = torch.randn(1, 2, 5, 75, generator=torch.Generator().manual_seed(1)).to(dtype)
    scores[0, 0, 0] = -INF
    scores[0, 0, 1] = torch.finfo(dtype).min
    scores[0, 0, 2, 40] = NAN
    scores[0, 0, 2, 41] = -2e4 if dtype == torch.float16 else -1e30  # attended; p = 0
    scores[0, 0, 2, 42] = -INF
    scores[0, 0, 3, 40] = INF
    scores[0, 0, 4, :70] = torch.finfo(dtype).min
    flags = torch.full((1, 60), IMAGE_FLAG, dtype=torch.uint8)
    result = ops.reweighted_softmax(scores, flags)
    expected = reference.reweighted_softmax(scores.double(), flags)
    # Cast to fp64 the lowest value is no longer the lowest: mask the rows it masks.
    exact = scores.double().masked_fill(scores <= torch.finfo(dtype).min, -INF)
    expected = reference.reweighted_softmax(exact, flags)
    same_dtype = reference.reweighted_softmax(scores, flags)
    assert not result.probabilities[0, 0, :2].any()
    assert not result.probabilities[0, 0, 2, 42]
    assert result.probabilities[0, 0, 2].isnan().sum() == 74
    assert not result.gate[0, 0, :4].any()
    assert not result.probabilities[0, 0, 4, :70].any()
    check_statistics(result.statistics, expected.statistics)
    finite = [1, 4]
    check_accuracy(
        result.probabilities[:, :, finite],
        same_dtype.probabilities[:, :, finite],
        expected.probabilities[:, :, finite],
    )
    assert max_error(result.probabilities[:, 1], expected.probabilities[:, 1]) < 0.01
