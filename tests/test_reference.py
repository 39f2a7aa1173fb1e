"""The reference against a naive loop in Python floats: one sum and one log at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vrga_ext import reference
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG

WEIGHTS = {"boost": (1.5, 1.0), "mask": (1.0, 0.0), "both": (3.0, 0.25)}


def naive_row(
    scores: list[float], attended: list[bool], flags: list[int], alpha: float, beta: float
):
    """Probabilities, reweighted probabilities and (R, H, H_joint) of one row."""
    keys = [j for j, seen in enumerate(attended) if seen]
    plain, weighted = [0.0] * len(scores), [0.0] * len(scores)
    if not keys:
        return plain, weighted, (0.0, 0.0, 0.0)
    highest = max(scores[j] for j in keys)
    total = sum(math.exp(scores[j] - highest) for j in keys)
    for j in keys:
        plain[j] = math.exp(scores[j] - highest) / total
    image = [j for j in keys if flags[j] & IMAGE_FLAG]
    share = sum(plain[j] for j in image)
    statistics = (0.0, 0.0, 0.0)
    if image and share > 0:
        ratio = (share / len(image)) / (sum(plain) / len(keys))
        entropy = -sum(p * math.log(p) for j in image if (p := plain[j] / share) > 0)
        joint = -sum(plain[j] * math.log(plain[j]) for j in image if plain[j] > 0)
        statistics = (ratio, entropy, joint)
    for j in keys:
        weight = alpha if flags[j] & FOCUS_FLAG else beta if flags[j] & IMAGE_FLAG else 1.0
        weighted[j] = weight * plain[j]
    norm = sum(weighted)
    return plain, [p / norm for p in weighted] if norm else None, statistics


def random_case(
    batch: int,
    heads: int,
    heads_kv: int,
    rows: int,
    keys: int,
    dim: int,
    flagged: int,
    seed: int = 0,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "query": normal(batch, heads, rows, dim) * 2,
        "key": normal(batch, heads_kv, keys, dim),
        "value": normal(batch, heads_kv, keys, dim + 1),
        "key_flags": torch.randint(0, 4, (batch, flagged), generator=generator, dtype=torch.uint8),
    }


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("gate", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("batch", "heads", "heads_kv", "rows", "keys", "dim", "flagged", "masking", "softcap"),
    [
        (1, 1, 1, 1, 1, 1, 1, None, 0.0),
        (2, 6, 2, 1, 13, 5, 13, None, 0.0),
        (2, 6, 3, 3, 11, 4, 7, "bool", 0.0),
        (1, 4, 4, 2, 17, 3, 17, "additive", 2.5),
        (2, 3, 1, 2, 9, 8, 0, "bool", 0.0),
    ],
)
def test_decode_attention_equals_naive_loop(
    weights, gate, batch, heads, heads_kv, rows, keys, dim, flagged, masking, softcap
):
    case = random_case(batch, heads, heads_kv, rows, keys, dim, flagged)
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(batch, 1, rows, keys, generator=generator) > 0.3
    bias = torch.randn(batch, heads, rows, keys, generator=generator, dtype=torch.float64)
    mask = None
    if masking == "bool":
        mask = allowed
    elif masking == "additive":
        mask = torch.where(allowed, bias, torch.finfo(torch.float64).min)
    eligible = torch.rand(batch, heads, generator=generator) > 0.4
    alpha, beta = WEIGHTS[weights]
    result = reference.decode_attention(
        **case,
        attn_mask=mask,
        heads=eligible,
        scale=0.7,
        softcap=softcap,
        gate=gate,
        focus_weight=alpha,
        image_weight=beta,
        min_ratio=0.8,
        entropy_factor=0.3,
    )
    group = heads // heads_kv
    gates_seen = set()
    for b in range(batch):
        flags = [*case["key_flags"][b].tolist(), *([0] * (keys - flagged))]
        for h in range(heads):
            for i in range(rows):
                scores = []
                for j in range(keys):
                    s = 0.7 * float(case["query"][b, h, i] @ case["key"][b, h // group, j])
                    s = softcap * math.tanh(s / softcap) if softcap else s
                    scores.append(s + (float(bias[b, h, i, j]) if masking == "additive" else 0.0))
                attended = [True] * keys if mask is None else allowed[b, 0, i].tolist()
                plain, weighted, (ratio, entropy, joint) = naive_row(
                    scores, attended, flags, alpha, beta
                )
                gated = bool(eligible[b, h]) and any(attended) and weighted is not None
                if gate == "dynamic":
                    gated = gated and ratio > 0.8 and ratio > 0.3 * joint
                gates_seen.add(gated)
                used = weighted if gated else plain
                expected = sum(
                    (p * case["value"][b, h // group, j] for j, p in enumerate(used)),
                    torch.zeros(dim + 1),
                )
                torch.testing.assert_close(result.output[b, h, i], expected, rtol=1e-10, atol=1e-12)
                got = [float(s[b, h, i]) for s in result.statistics]
                assert got == pytest.approx([ratio, entropy, joint], rel=1e-9, abs=1e-12)
                assert bool(result.gate[b, h, i]) == gated
    if batch * heads > 4 and flagged:
        assert gates_seen == {True, False}


def test_row_statistics_equals_decode_statistics():
    case = random_case(2, 6, 2, 1, 29, 8, 21)
    decoded = reference.decode_attention(**case)
    row = reference.row_statistics(case["query"][:, :, 0], case["key"], case["key_flags"])
    for ours, theirs in zip(row.statistics, decoded.statistics, strict=True):
        torch.testing.assert_close(ours, theirs[:, :, 0])
    scores = case["query"] @ case["key"].repeat_interleave(3, 1).mT * 8**-0.5
    image = (case["key_flags"] & IMAGE_FLAG).bool()[:, None]
    expected = torch.where(image, scores.softmax(-1)[:, :, 0, :21], 0.0)
    torch.testing.assert_close(row.image_attention, expected)


def test_reweighted_softmax_equals_decode_attention():
    case = random_case(2, 6, 2, 3, 29, 8, 21)
    scores = case["query"] @ case["key"].repeat_interleave(3, 1).mT * 8**-0.5
    scores[0, 1, 2, 4:9] = torch.finfo(scores.dtype).min
    scores[1, :, 1] = -torch.inf
    result = reference.reweighted_softmax(scores, case["key_flags"], focus_weight=4.0)
    attended = scores > torch.finfo(scores.dtype).min
    decoded = reference.decode_attention(**case, attn_mask=attended, focus_weight=4.0)
    value = case["value"].repeat_interleave(3, 1)
    torch.testing.assert_close(result.probabilities @ value, decoded.output)
    assert torch.equal(result.gate, decoded.gate)
    assert result.gate.any()
    assert result.probabilities[1, :, 1].abs().sum() == 0


def test_no_image_key_is_plain_attention():
    case = random_case(1, 4, 2, 1, 15, 8, 15)
    case["key_flags"] = torch.zeros_like(case["key_flags"])
    result = reference.decode_attention(**case)
    plain = torch.nn.functional.scaled_dot_product_attention(
        case["query"], case["key"], case["value"], enable_gqa=True
    )
    torch.testing.assert_close(result.output, plain)
    assert not result.gate.any()
    assert all(s.abs().sum() == 0 for s in result.statistics)


def test_all_weight_on_masked_tokens_closes_the_gate():
    case = random_case(1, 2, 1, 1, 4, 8, 4)
    case["key_flags"] = torch.full((1, 4), IMAGE_FLAG, dtype=torch.uint8)
    result = reference.decode_attention(**case, gate="static", focus_weight=1.0, image_weight=0.0)
    plain = reference.decode_attention(**case, gate="static", focus_weight=1.0, image_weight=1.0)
    assert not result.gate.any()
    assert plain.gate.all()
    torch.testing.assert_close(result.output, plain.output)


def test_image_share_that_underflows_closes_the_dynamic_gate():
    scores = torch.tensor([[[[0.0, 0.0, -1e4, -1e4]]]])
    flags = torch.tensor([[0, 0, 3, 3]], dtype=torch.uint8)
    result = reference.reweighted_softmax(scores, flags, min_ratio=0.0)
    assert [float(s) for s in result.statistics] == [0.0, 0.0, 0.0]
    assert not result.gate.any()


def test_nan_stays_in_its_row():
    case = random_case(1, 4, 2, 2, 9, 8, 9)
    clean = reference.decode_attention(**case)
    case["query"][0, 1, 0] = torch.nan
    result = reference.decode_attention(**case)
    assert result.output[0, 1, 0].isnan().all()
    assert result.statistics.image_ratio[0, 1, 0].isnan()
    assert not result.gate[0, 1, 0]
    rest = torch.ones(4, 2, dtype=torch.bool)
    rest[1, 0] = False
    torch.testing.assert_close(result.output[0, rest], clean.output[0, rest])


def test_unattended_cache_rows_may_hold_anything():
    case = random_case(2, 4, 2, 1, 12, 8, 6)
    keep = torch.arange(12) < 8
    clean = reference.decode_attention(**case, attn_mask=keep[None, None, None])
    case["key"][:, :, 8:] = torch.nan
    case["value"][:, :, 8:] = torch.inf
    result = reference.decode_attention(**case, attn_mask=keep[None, None, None])
    torch.testing.assert_close(result.output, clean.output, rtol=0, atol=0)


def test_unknown_gate_is_named():
    with pytest.raises(ValueError, match="gate: wanted 'static' or 'dynamic', got 'open'"):
        reference.decode_attention(**random_case(1, 1, 1, 1, 2, 2, 2), gate="open")
