"""From statistics to heads and tokens, on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vrga_ext import VRGAConfig
from vrga_ext.selection import (
    RowStatistics,
    Span,
    background_heads,
    border_sinks,
    focus_tokens,
    refined_map,
    row_statistics,
    visual_heads,
    widen_tokens,
)


def statistics(ratio: list[float], efr: list[float]) -> RowStatistics:
    ratios, efrs = torch.tensor([ratio]).double(), torch.tensor([efr]).double()
    return RowStatistics(ratios, ratios * efrs, efrs)


def cells(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def test_row_statistics_by_hand():
    a = torch.tensor([[[0.1, 0.3, 0.0], [0.0, 0.0, 0.0]]]).double()
    stats = row_statistics(a, attended=12)
    ratio = 0.4 * 12 / 3
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert stats.image_ratio.tolist() == [[pytest.approx(ratio), 0.0]]
    assert stats.image_entropy.tolist() == [[pytest.approx(entropy), 0.0]]
    assert stats.efr.tolist() == [[pytest.approx(entropy / ratio), math.inf]]


def test_row_statistics_with_the_released_epsilon():
    a = torch.tensor([[[1e-11, 3e-11]]], dtype=torch.float64)
    stats = row_statistics(a, attended=2, epsilon=1e-12)
    inside = [x / (4e-11 + 1e-12) for x in (1e-11, 3e-11)]
    entropy = -sum(x * math.log(x + 1e-12) for x in inside)
    assert float(stats.image_entropy) == pytest.approx(entropy, rel=1e-12)
    assert float(stats.efr) == pytest.approx(entropy / (4e-11 + 1e-12), rel=1e-12)


def test_nan_row_is_no_visual_head():
    stats = row_statistics(torch.tensor([[[math.nan, 0.1], [0.4, 0.1], [0.1, 0.1]]]), attended=2)
    assert cells(visual_heads(stats, VRGAConfig(efr_percentile=100, ratio_percentile=0))[0]) == [
        1,
        2,
    ]


def test_visual_heads_need_both_conditions():
    ratio = [float(i) for i in range(21)]
    efr = [float(20 - i) for i in range(21)]
    assert cells(visual_heads(statistics(ratio, efr), VRGAConfig())[0]) == [19, 20]
    # A head with the lowest EFR that does not look at the image, and one that looks but scatters.
    efr[0], efr[20] = -1.0, 50.0
    assert cells(visual_heads(statistics(ratio, efr), VRGAConfig())[0]) == [19]


def test_visual_heads_fall_back_to_the_ratio():
    ratio = [float(i) for i in range(21)]
    assert cells(visual_heads(statistics(ratio, ratio), VRGAConfig())[0]) == [19, 20]


def test_no_finite_head_gives_none():
    assert not visual_heads(statistics([math.nan, 1.0], [1.0, math.inf]), VRGAConfig()).any()


def test_background_heads_are_early_and_blind():
    stats = RowStatistics(*[torch.full((3, 4), 0.001).double()] * 3)
    stats.image_ratio[0, 1] = 0.5
    found = background_heads(stats, VRGAConfig(background_first_heads=6))
    assert found.nonzero().tolist() == [[0, 0], [0, 2], [0, 3], [1, 0], [1, 1]]


def test_refined_map_subtracts_and_clamps():
    visual = torch.tensor([[0.1, 0.3]]).double()
    background = torch.tensor([[0.3, 0.1]]).double()
    assert refined_map(visual, background).tolist() == [0.0, 1.0]
    assert refined_map(visual, background[:0]).tolist() == pytest.approx([0.1, 0.3])
    assert refined_map(visual, background, 0.2).tolist() == pytest.approx([0.1 / 0.8, 0.7 / 0.8])
    # Everything clamps to 0: the unsubtracted, normalised map.
    assert refined_map(visual, visual).tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("span", "share", "expected"),
    [
        (Span(0, 65, 1, (8, 8)), 0.2, [0, 1, 8, 9, 2, 3, 4, 5, 6, 7, 16, 24, 32]),
        (Span(0, 12, 0, (3, 4)), 0.2, [0, 1]),
        (Span(0, 12, 0, (3, 4)), 1.0, [0, 1, 4, 5, 2, 3, 8]),
        (Span(0, 3, 0, (1, 3)), 1.0, [0, 1, 2]),
        (Span(0, 3, 0, (3, 1)), 1.0, [0, 1, 2]),
        (Span(0, 12, 0, None), 1.0, []),
        (Span(0, 12, 0, (3, 4)), 0.0, []),
    ],
)
def test_border_sinks(span, share, expected):
    assert border_sinks(span, share).tolist() == expected


def test_threshold_ignores_suppressed_cells():
    refined = torch.full((16,), 0.1).double()
    refined[0] = 50.0  # a sink in the corner: neither kept nor part of the mean
    refined[10], refined[11] = 0.4, 0.15
    spans = [Span(0, 16, 0, (4, 4))]
    focus, suppressed = focus_tokens(refined, spans, VRGAConfig(focus_min_tokens=1))
    assert cells(suppressed) == [0, 1, 4]
    assert cells(focus) == [10]
    plain = focus_tokens(refined, spans, VRGAConfig(focus_min_tokens=1, border_suppression=False))[
        0
    ]
    assert cells(plain) == [0]


def test_threshold_is_the_mean_and_the_sample_deviation():
    # Mean 2, squared deviations sum to 32: 2 + 0.75 sqrt(32 / 4) = 4.12; over 5 it would be 3.90.
    refined = torch.tensor([0.0, 0.0, 0.0, 4.0, 6.0]).double()
    config = VRGAConfig(focus_min_tokens=1, focus_std=0.75)
    assert cells(focus_tokens(refined, [Span(0, 5, 0, None)], config)[0]) == [4]


def test_threshold_itself_is_not_kept():
    refined = torch.tensor([0.0, 2.0, 4.0]).double()
    config = VRGAConfig(focus_min_tokens=1, focus_std=0.0)
    assert cells(focus_tokens(refined, [Span(0, 3, 0, None)], config)[0]) == [2]


def test_at_least_the_largest_are_kept():
    refined = torch.arange(20).double()
    focus, _ = focus_tokens(refined, [Span(0, 20, 0, None)], VRGAConfig(focus_std=9.0))
    assert cells(focus) == list(range(10, 20))
    few, _ = focus_tokens(refined[:4], [Span(0, 4, 0, None)], VRGAConfig())
    assert cells(few) == [0, 1, 2, 3]


def test_widening_on_a_grid_does_not_wrap():
    spans = [Span(0, 20, 0, (4, 5))]
    focus, none = torch.zeros(2, 20).bool()
    focus[9] = True  # row 1, last column
    assert cells(widen_tokens(focus, none, spans, VRGAConfig(widen=1))) == [3, 4, 8, 9, 13, 14]
    flat = VRGAConfig(widen=2, neighbourhood="flat")
    assert cells(widen_tokens(focus, none, spans, flat)) == [7, 8, 9, 10, 11]
    assert cells(widen_tokens(focus, none, spans, VRGAConfig(widen=0))) == [9]


def test_widening_stays_within_its_image_and_out_of_sinks():
    spans = [Span(0, 9, 0, (3, 3)), Span(9, 9, 0, (3, 3))]
    focus, suppressed = torch.zeros(2, 18).bool()
    focus[8], suppressed[4] = True, True
    assert cells(widen_tokens(focus, suppressed, spans, VRGAConfig(widen=1))) == [5, 7, 8]
    flat = VRGAConfig(widen=1, neighbourhood="flat")
    assert cells(widen_tokens(focus, suppressed, spans, flat)) == [7, 8]


def test_leading_tokens_are_skipped_and_the_lead_is_no_cell():
    spans = [Span(0, 10, 1, (3, 3))]  # a start token, then nine cells
    focus, none = torch.zeros(2, 10).bool()
    focus[[2, 5]] = True
    skipping = VRGAConfig(widen=0, skip_leading_tokens=3)
    assert cells(widen_tokens(focus, none, spans, skipping)) == [5]
    assert cells(
        widen_tokens(focus, none, spans, VRGAConfig(widen=1, skip_leading_tokens=3))
    ) == list(range(1, 10))
