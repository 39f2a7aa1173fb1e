"""Properties of the operations and of the selection, on inputs that hypothesis chooses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vrga_ext import VRGAConfig, ops, reference
from vrga_ext.prompts.images import image_span_mask, image_spans
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG
from vrga_ext.selection import (
    RowStatistics,
    Span,
    focus_tokens,
    refined_map,
    visual_heads,
    widen_tokens,
)

# The same examples in every run, and no limit of time: the machine may be busy.
repeatable = settings(max_examples=25, derandomize=True, deadline=None)
seeds = st.integers(0, 2**32 - 1)
both = pytest.mark.parametrize("implementation", [reference, ops], ids=["reference", "native"])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def attention(draw) -> dict[str, Tensor]:
    """Arguments of ``decode_attention``: some keys masked, some of an image, some of T_q."""
    batch, heads_kv, group, rows = (draw(st.integers(1, top)) for top in (2, 2, 3, 2))
    keys, dim = draw(st.integers(2, 70)), draw(st.sampled_from([3, 8, 64]))
    random = generator(draw(seeds))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    image = torch.rand(batch, keys, generator=random) < draw(st.floats(0.1, 0.9))
    focus = image & (torch.rand(batch, keys, generator=random) < 0.5)
    mask = torch.rand(batch, 1, rows, keys, generator=random) < 0.8
    mask[..., 0] = True
    return {
        "query": normal(batch, heads_kv * group, rows, dim) * draw(st.sampled_from([1.0, 4.0])),
        "key": normal(batch, heads_kv, keys, dim),
        "value": normal(batch, heads_kv, keys, dim),
        "key_flags": (image * IMAGE_FLAG + focus * FOCUS_FLAG).to(torch.uint8),
        "attn_mask": mask,
    }


def close(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for tensor, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-5)


@both
@repeatable
@given(case=attention(), gate=st.sampled_from(["static", "dynamic"]), seed=seeds)
def test_order_of_the_keys_does_not_matter(implementation, case, gate, seed):
    order = torch.randperm(case["key"].shape[2], generator=generator(seed))
    shuffled = case | {
        "key": case["key"][:, :, order],
        "value": case["value"][:, :, order],
        "key_flags": case["key_flags"][:, order],
        "attn_mask": case["attn_mask"][..., order],
    }
    ours = implementation.decode_attention(**shuffled, gate=gate)
    expected = implementation.decode_attention(**case, gate=gate)
    close((ours.output, *ours.statistics), (expected.output, *expected.statistics))
    assert torch.equal(ours.gate, expected.gate)


@both
@repeatable
@given(case=attention(), gate=st.sampled_from(["static", "dynamic"]), more=st.integers(1, 40))
def test_masked_keys_do_not_count(implementation, case, gate, more):
    """A static cache is longer than what it holds."""
    longer = case | {
        "key": torch.nn.functional.pad(case["key"], (0, 0, 0, more), value=9.0),
        "value": torch.nn.functional.pad(case["value"], (0, 0, 0, more), value=9.0),
        "attn_mask": torch.nn.functional.pad(case["attn_mask"], (0, more), value=False),
    }
    ours = implementation.decode_attention(**longer, gate=gate)
    expected = implementation.decode_attention(**case, gate=gate)
    close((ours.output, *ours.statistics), (expected.output, *expected.statistics))
    assert torch.equal(ours.gate, expected.gate)


@both
@repeatable
@given(case=attention(), cut=st.floats(0.01, 0.99))
def test_statistics_of_two_parts_merge(implementation, case, cut):
    """Mass adds up, and entropy obeys the chain rule, wherever the keys are divided."""
    keys = case["key"].shape[2]
    at = min(max(int(cut * keys), 1), keys - 1)
    query, mask = case["query"][:, :, 0].double(), case["attn_mask"][:, :, :1]
    arguments = {"query": query.to(case["query"].dtype), "key_flags": case["key_flags"]}
    if implementation is reference:
        arguments["query"] = query
    whole = _part(implementation, arguments, case, mask, 0, keys)
    parts = [_part(implementation, arguments, case, mask, *ends) for ends in ((0, at), (at, keys))]
    total = sum(part["Z"] for part in parts)
    image = sum(part["Z_V"] for part in parts)
    torch.testing.assert_close(total, whole["Z"], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(image, whole["Z_V"], rtol=1e-4, atol=1e-6)
    shares = [part["Z_V"] / torch.where(image > 0, image, 1.0) for part in parts]
    entropy = sum(
        share * part["H_img"] - torch.special.xlogy(share, share)
        for share, part in zip(shares, parts, strict=True)
    )
    torch.testing.assert_close(entropy, whole["H_img"], rtol=1e-3, atol=1e-4)


def _part(
    implementation, arguments: dict[str, Tensor], case: dict[str, Tensor], mask: Tensor, *ends: int
) -> dict[str, Tensor]:
    """Z, Z_V and H_img [B, Hq] of a range of keys, from R_img and the scores' sum."""
    keys = slice(*ends)
    query, flags = arguments["query"], arguments["key_flags"][:, keys]
    key, seen = case["key"][:, :, keys].to(query.dtype), mask[..., keys]
    statistics = implementation.row_statistics(query, key, flags, attn_mask=seen).statistics
    group = query.shape[1] // key.shape[1]
    scores = (query[:, :, None] @ key.repeat_interleave(group, 1).mT)[:, :, 0].double()
    seen = seen[:, :, 0].expand_as(scores)
    p = (scores * query.shape[-1] ** -0.5).exp().masked_fill(~seen, 0.0)
    n = (seen & ((flags & IMAGE_FLAG) != 0)[:, None]).sum(-1)
    total = p.sum(-1)
    in_image = statistics.image_ratio.double() * n / seen.sum(-1).clamp(min=1) * total
    return {"Z": total, "Z_V": in_image, "H_img": statistics.image_entropy.double()}


@both
@repeatable
@given(
    seed=seeds,
    keys=st.integers(2, 60),
    gate=st.sampled_from(["static", "dynamic"]),
    weights=st.sampled_from([(1.5, 1.0), (5.0, 1.0), (1.0, 0.0), (3.0, 0.25)]),
)
def test_weights_change_the_image_alone(implementation, seed, keys, gate, weights):
    """Weights sum to 1; the keys' odds against text are those of plain attention times w."""
    random = generator(seed)
    scores = 2 * torch.randn(2, 3, 1, keys, generator=random)
    image = torch.rand(2, keys, generator=random) < 0.6
    image[:, 0] = False  # at least one text key
    focus = image & (torch.rand(2, keys, generator=random) < 0.5)
    heads = torch.rand(2, 3, generator=random) < 0.7
    flags = (image * IMAGE_FLAG + focus * FOCUS_FLAG).to(torch.uint8)
    result = implementation.reweighted_softmax(
        scores,
        flags,
        heads=heads,
        gate=gate,
        focus_weight=weights[0],
        image_weight=weights[1],
    )
    plain = scores.softmax(-1)
    torch.testing.assert_close(result.probabilities.sum(-1), torch.ones(2, 3, 1))
    w = torch.where(focus, weights[0], torch.where(image, weights[1], 1.0))[:, None, None]
    w = torch.where(result.gate[..., None], w, 1.0)
    odds = result.probabilities / result.probabilities[..., :1]
    torch.testing.assert_close(odds, w * plain / plain[..., :1], rtol=1e-4, atol=1e-6)
    assert not (result.gate[..., 0] & ~heads).any()
    if gate == "static":
        assert torch.equal(result.gate[..., 0], heads)


configs = st.builds(
    VRGAConfig,
    efr_percentile=st.floats(0, 100),
    ratio_percentile=st.floats(0, 100),
    focus_std=st.floats(-1, 2),
    focus_min_tokens=st.integers(1, 12),
    border_suppression=st.booleans(),
    border_max_share=st.floats(0, 1),
    widen=st.integers(0, 3),
    neighbourhood=st.sampled_from(["grid", "flat"]),
)


@repeatable
@given(seed=seeds, config=configs, layers=st.integers(1, 4), heads=st.integers(1, 6))
def test_visual_heads_follow_a_permutation(seed, config, layers, heads):
    random = generator(seed)
    ratio, efr = torch.rand(2, layers, heads, generator=random).double()
    order = torch.randperm(heads, generator=random)
    chosen = visual_heads(RowStatistics(ratio, ratio * efr, efr), config)
    again = visual_heads(RowStatistics(*(t[:, order] for t in (ratio, ratio * efr, efr))), config)
    assert torch.equal(again, chosen[:, order])
    assert chosen.any()


@st.composite
def images(draw) -> list[Span]:
    """One to three images, with a grid or without."""
    spans, first = [], 0
    for _ in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
        grid = draw(st.sampled_from([(rows, columns), None]))
        spans.append(Span(first, rows * columns, 0, grid))
        first += rows * columns
    return spans


@repeatable
@given(seed=seeds, spans=images(), config=configs, scale=st.integers(-8, 8))
def test_focus_tokens(seed, spans, config, scale):
    n = spans[-1].start + spans[-1].length
    refined = torch.rand(n, generator=generator(seed)).double()
    focus, suppressed = focus_tokens(refined, spans, config)
    assert not (focus & suppressed).any()
    assert focus.sum() >= min(config.focus_min_tokens, int((~suppressed).sum()))
    left_out = ~focus & ~suppressed
    if focus.any() and left_out.any():
        assert refined[left_out].max() <= refined[focus].min()
    scaled, _ = focus_tokens(refined * 2.0**scale, spans, config)
    assert torch.equal(scaled, focus)


@repeatable
@given(seed=seeds, spans=images(), config=configs)
def test_widening_grows_within_each_image(seed, spans, config):
    n = spans[-1].start + spans[-1].length
    focus, suppressed = focus_tokens(
        torch.rand(n, generator=generator(seed)).double(), spans, config
    )
    boosted = widen_tokens(focus, suppressed, spans, config)
    wider = widen_tokens(focus, suppressed, spans, replace(config, widen=config.widen + 1))
    assert not (focus & ~boosted).any()
    assert not (boosted & ~wider).any()
    for span in spans:
        inside = slice(span.start, span.start + span.length)
        assert bool(boosted[inside].any()) == bool(focus[inside].any())
        if span.grid is not None and config.neighbourhood == "grid":
            assert not (boosted & suppressed)[inside].any()


@repeatable
@given(seed=seeds, visual=st.integers(1, 4), background=st.integers(0, 4), n=st.integers(1, 40))
def test_refined_map_is_a_distribution(seed, visual, background, n):
    random = generator(seed)
    maps = [
        torch.rand(count, n, generator=random).double() + 1e-6 for count in (visual, background)
    ]
    refined = refined_map(*maps)
    assert (refined >= 0).all()
    if background:
        assert math.isclose(float(refined.sum()), 1.0)
    else:
        torch.testing.assert_close(refined, maps[0].mean(0))
    order = torch.randperm(n, generator=random)
    torch.testing.assert_close(refined_map(*(each[:, order] for each in maps)), refined[order])


@repeatable
@given(
    row=st.lists(st.booleans(), max_size=40),
    fixed=st.sampled_from([None, (2, 2), (1, 3)]),
    image_span=st.sampled_from(["tokens", "vision_span"]),
)
def test_image_spans_cover_the_image(row, fixed, image_span):
    image = torch.tensor(row, dtype=torch.bool)
    keys = image_span_mask(image[None], image_span)[0]
    positions, spans = image_spans(image, keys, None, fixed)
    assert torch.equal(positions, keys.nonzero().flatten())
    ends = [span.start + span.length for span in spans]
    assert [span.start for span in spans] == [0, *ends][: len(spans)]
    assert sum(span.length for span in spans) == len(positions)
    for span in spans:
        assert span.grid is None or math.prod(span.grid) == span.length - span.lead
