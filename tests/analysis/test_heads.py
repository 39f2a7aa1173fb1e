"""RRAR, fits, drift, paired comparisons and head masking."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

import vrga_ext
from tests.adapter.families import LOOSE, ROWS, build, greedy, logits
from vrga_ext import Capture, VRGAConfig, analysis, viz
from vrga_ext.analysis.ablation import heads_by_policy
from vrga_ext.demo.answers import answer_all, held_out, load_demo

STEPS = 4


@pytest.fixture(scope="module")
def family():
    return build("qwen2_5_vl")


@pytest.fixture(scope="module")
def inputs(family):
    return family.prompt(*ROWS)


@pytest.fixture(scope="module")
def end(inputs):
    return inputs["input_ids"].shape[1] - 1


@pytest.fixture(scope="module")
def capture(family, inputs, end):
    with vrga_ext.capture(family.model, rows=True, question_end=end) as recording:
        greedy(family.model, inputs, STEPS)
    return recording.last


def test_rrar_of_every_head_and_row(capture):
    generator = torch.Generator().manual_seed(0)
    image = capture.image_positions >= 0
    tokens = (torch.rand(image.shape, generator=generator) < 0.3) & image
    found = analysis.rrar(capture, tokens)
    assert found.shape == capture.image_ratio.shape
    rows = capture.image_rows()
    for sample, layer, head, row in product(*map(range, found.shape)):
        a = rows[sample, layer, head, row].double()
        wanted = a[tokens[sample]].mean() / a[image[sample]].mean()
        assert found[sample, layer, head, row].item() == pytest.approx(wanted.item(), rel=1e-4)
    every = analysis.rrar(capture, image)
    torch.testing.assert_close(every, torch.ones_like(every))
    assert analysis.rrar(capture, image & False).isnan().all()
    with pytest.raises(ValueError, match="tokens: wanted"):
        analysis.rrar(capture, tokens[:1])


def test_rrar_of_one_level(capture):
    """Both means are over the level's tokens."""
    image = capture.image_positions >= 0
    order = torch.arange(image.shape[1]).expand_as(image)
    tokens, levels = order % 3 == 0, order % 2
    rows = capture.image_rows()
    seen = (order[:1] < capture.image_keys[..., None])[:, None, None]
    for level in (0, 1):
        counted = seen & (levels == level)[:, None, None, None]
        wanted = analysis.heads.region_ratio(rows, counted & tokens[:, None, None, None], counted)
        found = analysis.rrar(capture, tokens, level=level, levels=levels)
        torch.testing.assert_close(found, wanted, equal_nan=True)
    assert found.isfinite().any()
    with pytest.raises(ValueError, match="level: wanted 0 or 1 with levels, got None"):
        analysis.rrar(capture, tokens, levels=levels)
    with pytest.raises(ValueError, match="levels: wanted int"):
        analysis.rrar(capture, tokens, level=1)
    with pytest.raises(ValueError, match="levels: wanted int"):
        analysis.rrar(capture, tokens, level=1, levels=levels[:1])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_rrar_is_over_the_tokens_that_a_row_sees(name):
    """Rows before, within (gemma3 sees its whole image there) and after images."""
    family = build(name)
    inputs = family.prompt(ROWS[2])
    image = family.image_columns(inputs)[0].nonzero().flatten()
    middle = int(image[len(image) // 3])
    wanted = [int(image[0]) - 1, middle, int(image[-1]) + 1]
    with vrga_ext.capture(family.model, rows="all", prompt_rows=wanted) as recording:
        greedy(family.model, inputs, 1)
    capture = recording.last
    tokens = torch.arange(len(image))[None] < len(image) // 4
    found = analysis.rrar(capture, tokens)[0]
    assert found[..., 0].isnan().all()
    for row in (1, 2):
        a = capture.image_rows()[0, :, :, row].double()  # [L, H, n]
        seen = (a > 0).any(1).any(0)
        assert int(seen.sum()) == int(capture.image_keys[0, row])
        expected = a[..., seen & tokens[0]].mean(-1) / a[..., seen].mean(-1)
        torch.testing.assert_close(found[..., row].double(), expected, atol=1e-4, rtol=1e-4)


def test_tokens_may_be_arrays_and_have_to_be_boolean(capture):
    tokens = capture.boosted[:, 0]
    wanted = analysis.rrar(capture, tokens)
    for given in (tokens.numpy(), tokens.tolist()):
        torch.testing.assert_close(analysis.rrar(capture, given), wanted, equal_nan=True)
    for given in (tokens.float(), tokens.long().numpy(), tokens[0], None):
        with pytest.raises(ValueError, match=r"tokens: wanted bool \[3, \d+\], got"):
            analysis.rrar(capture, given)


def test_only_the_chosen_heads_are_reweighted(capture, monkeypatch):
    """Else two heads of a large model cost as much as all."""
    shapes = []
    stock = Capture.image_rows

    def spied(self, **options):
        shapes.append(tuple(self.rows.shape[:3]))
        return stock(self, **options)

    tokens, heads = capture.image_positions >= 0, [(0, 1), (2, 3)]
    every = analysis.rrar(capture, tokens)[:, [0, 2], [1, 3], 1:].mean(1)
    monkeypatch.setattr(Capture, "image_rows", spied)
    torch.testing.assert_close(analysis.drift(capture, tokens, heads).rrar, every)
    viz.head_maps(capture, sample=1, heads=heads)
    assert shapes == [(3, 1, 2), (1, 1, 2)]


def test_drift_names_its_tokens(family, inputs):
    """With any number of prompt rows before them, and with beams."""
    length = inputs["input_ids"].shape[1]
    for rows, beams in (([], 1), ([length - 3, length - 1], 1), ([length - 1], 2)):
        with vrga_ext.capture(family.model, prompt_rows=rows, question_end=length - 1) as recording:
            output = greedy(family.model, inputs, STEPS, num_beams=beams)
        capture = recording.last
        if beams > 1:
            capture = capture.follow_beams(output.beam_indices)
        found = analysis.drift(capture)
        assert found.token_ids.tolist() == output.sequences[:, length:-1].tolist()
        assert found.positions.tolist() == [list(range(length, length + STEPS - 1))] * len(ROWS)
        assert found.image_ratio.shape == found.positions.shape
        torch.testing.assert_close(
            found.image_ratio, capture.image_ratio[..., len(rows) :].flatten(1, 2).mean(1)
        )


def test_drift_is_the_mean_over_heads(capture):
    tokens = capture.boosted[:, 0]
    found = analysis.drift(capture, tokens)
    assert found.image_ratio.shape == (3, STEPS - 1)
    torch.testing.assert_close(found.image_ratio, capture.image_ratio[..., 1:].mean((1, 2)))
    for name in ("positions", "token_ids"):  # of the rows that are left, not of the capture's first
        assert torch.equal(getattr(found, name), getattr(capture, name)[:, capture.prompt_rows :])
    one = analysis.drift(capture, heads=[(2, 1)])
    assert one.rrar is None
    torch.testing.assert_close(one.image_entropy, capture.image_entropy[:, 2, 1, 1:])
    with pytest.raises(ValueError, match=r"heads: wanted \(layer, head\) of layers"):
        analysis.drift(capture, heads=[(3, 0)])
    with pytest.raises(ValueError, match="heads: wanted at least one"):
        analysis.drift(capture, heads=[])
    for heads in ((2, 0), [(2, 0, 1)], [(2.0, 0.0)], ["20"], 3):
        with pytest.raises(ValueError, match=r"heads: wanted a list of \(layer, head\)"):
            analysis.drift(capture, heads=heads)


def test_focused_heads_are_those_of_enable(family, inputs, end, capture):
    with vrga_ext.enable(family.model, question_end=end, **LOOSE) as handle:
        greedy(family.model, inputs, 1)
        wanted = tuple(region.visual_heads for region in handle.regions)
    config = VRGAConfig(efr_percentile=40, ratio_percentile=60)
    assert analysis.focused_heads(capture, config) == wanted


def test_linear_fit_is_least_squares():
    rng = np.random.default_rng(0)
    entropy = rng.uniform(0, 3, size=(4, 16))
    ratio = 0.7 * entropy - 0.2 + 0.1 * rng.normal(size=entropy.shape)
    slope, intercept = np.polyfit(entropy.ravel(), ratio.ravel(), 1)
    r = np.corrcoef(entropy.ravel(), ratio.ravel())[0, 1]
    padded = np.full((4, 17), np.nan)
    padded[:, :16] = ratio
    found = analysis.linear_fit(
        torch.tensor(padded), torch.tensor(np.pad(entropy, ((0, 0), (0, 1))))
    )
    assert found == pytest.approx((slope, intercept, r, 64))
    with pytest.raises(ValueError, match="at least two different finite values"):
        analysis.linear_fit(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="image_entropy: wanted"):
        analysis.linear_fit(torch.ones(3), torch.ones(4))


@pytest.mark.parametrize("count", [1, 7, 112])
def test_equal_numbers_have_no_fit_whatever_their_mean_rounds_to(count):
    equal, other = torch.full((count,), 0.1).double(), torch.arange(float(count))
    with pytest.raises(ValueError, match="at least two different finite values"):
        analysis.linear_fit(other, equal)
    if count > 1:
        found = analysis.linear_fit(equal, other)
        assert found.slope == pytest.approx(0)
        assert math.isnan(found.pearson_r)


@pytest.mark.parametrize("better", [0, 3, 8, 9])
def test_sign_test_counts_every_outcome(better):
    worse = 9 - better
    first = np.array([1.0] * better + [0.0] * worse + [0.5] * 4)
    found = analysis.compare(first, np.array([0.0] * better + [1.0] * worse + [0.5] * 4))
    assert (found.better, found.worse, found.questions) == (better, worse, 13)
    outcomes = [abs(sum(signs)) for signs in product((-1, 1), repeat=9)]
    as_far = np.mean([outcome >= abs(better - worse) for outcome in outcomes])
    assert found.p_value == pytest.approx(as_far)
    difference = np.array([1.0] * better + [-1.0] * worse + [0.0] * 4)
    assert found.mean_difference == pytest.approx(difference.mean())
    assert found.standard_error == pytest.approx(difference.std(ddof=1) / math.sqrt(13))


def test_long_comparisons_take_the_normal_limit():
    just, over = (analysis.Paired(0.0, 0.0, 520 + extra, 480, 2000).p_value for extra in (0, 1))
    assert just == pytest.approx(over, rel=0.1)
    assert analysis.Paired(0.0, 0.0, 5000, 5000, 10_000).p_value == 1.0


def test_comparisons_that_cannot_be_made():
    half = torch.tensor([1.0, 0.5, 0.0], dtype=torch.bfloat16, requires_grad=True)
    assert analysis.compare(half, [0, 0, 0]).mean_difference == 0.5
    with pytest.raises(ValueError, match="wanted one value per question"):
        analysis.compare([1, 2], [1])
    with pytest.raises(ValueError, match="at least one pair"):
        analysis.compare([math.nan], [1])
    with pytest.raises(ValueError, match="penalty: wanted"):
        analysis.combined_score(0.5, 2, 0.1)


def test_masked_heads_do_not_see_the_image(family, inputs, capture):
    plain = greedy(family.model, inputs, STEPS)
    heads = [(0, 1), (2, 3), (0, 1)]
    with (
        pytest.warns(vrga_ext.VRGAWarning, match="question's end"),
        analysis.mask_heads(family.model, heads),
        vrga_ext.capture(family.model, rows=True) as recording,
    ):
        masked = greedy(family.model, inputs, STEPS)
    assert not torch.equal(logits(masked)[1:], logits(plain)[1:])
    assert torch.equal(logits(masked)[0], logits(plain)[0])
    rows, before = recording.last.image_rows(), recording.last.image_rows(reweighted=False)
    hidden = analysis.head_mask(heads, capture.layers, 4)
    assert not rows[:, hidden, 1:].any()
    assert torch.equal(rows[:, ~hidden], before[:, ~hidden])
    assert torch.equal(rows[..., 0, :], before[..., 0, :])
    torch.testing.assert_close(before[:, 0, :, 1], capture.image_rows()[:, 0, :, 1])
    assert torch.equal(logits(greedy(family.model, inputs, STEPS)), logits(plain))


def test_heads_that_cannot_be_masked(family, inputs):
    with pytest.raises(ValueError, match="at least one"), analysis.mask_heads(family.model, []):
        pass
    flat = analysis.mask_heads(family.model, [1, 2])
    with pytest.raises(ValueError, match=r"heads: wanted a list of \(layer, head\)"), flat:
        pass
    unknown = analysis.mask_heads(family.model, [(7, 0)])
    with pytest.warns(vrga_ext.VRGAWarning), pytest.raises(ValueError, match="layers"), unknown:
        greedy(family.model, inputs, 2)
    with vrga_ext.enable(family.model), pytest.raises(ValueError, match="enabled already"):
        analysis.mask_heads(family.model, [(0, 0)]).__enter__()


def test_policies(capture):
    ratio = capture.image_ratio[..., 0].double().mean(0)
    efr = capture.image_entropy[..., 0].double().mean(0) / ratio
    for layer, heads in enumerate(ratio):
        looking = [h for h in range(4) if heads[h] > heads.median() or heads.argmax() == h]
        best = min(looking, key=lambda h: efr[layer, h])
        chosen = analysis.choose_heads(capture, "efr", 1)
        assert [h for index, h in chosen if index == capture.layers[layer]] == [best]
    least = analysis.choose_heads([capture, capture], "lowest_ratio", 1)
    assert least == tuple(zip(capture.layers, ratio.argmin(1).tolist(), strict=True))
    one, again, other = (
        analysis.choose_heads(capture, "random", 2, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again != other
    assert len(set(one)) == 6
    with pytest.raises(ValueError, match="policy: wanted one of"):
        analysis.choose_heads(capture, "best", 1)
    for count in (3, 1.5, 0):
        wanted = f"per_layer: wanted 1 to 2 of a layer's 4 heads, got {count}"
        with pytest.raises(ValueError, match=wanted):
            analysis.choose_heads(capture, "efr", count)
    for query in (99, STEPS, -STEPS - 1):
        wanted = f"query: wanted one of the capture's {STEPS} queries, got {query}"
        with pytest.raises(ValueError, match=wanted):
            analysis.choose_heads(capture, "efr", 1, query=query)
        with pytest.raises(ValueError, match=wanted):
            analysis.focused_heads(capture, query=query)


def test_heads_without_statistics_are_never_chosen():
    ratio = torch.tensor([[0.1, 2.0, 1.0, math.nan], [math.nan] * 4])
    efr = torch.tensor([[math.inf, 0.9, 2.0, math.nan], [math.nan] * 4])
    assert heads_by_policy(ratio, efr, (5, 6), "efr", 2) == ((5, 1),)  # alone above the median
    assert heads_by_policy(ratio, efr, (5, 6), "lowest_ratio", 2) == ((5, 0), (5, 2))
    drawn = {heads_by_policy(ratio, efr, (5, 6), "random", 2, seed=seed) for seed in range(20)}
    assert len(drawn) == 3
    assert not any((5, 3) in heads or len(heads) != 2 for heads in drawn)


@pytest.mark.parametrize(
    ("per_layer", "policies", "message"), [(1, ("efr", "best"), "policy"), (5, ("efr",), "per_lay")]
)
def test_a_study_that_cannot_be_made_asks_nothing(per_layer, policies, message):
    model, processor = load_demo()

    def answer():
        raise AssertionError("asked")

    with pytest.raises(ValueError, match=f"{message}.*: wanted"):
        analysis.ablate(model, answer, per_layer, policies=policies, processor=processor)


def test_the_focused_heads_of_the_demo_model_are_the_ones_that_matter():
    """Paper section 3: they collapse the accuracy, random and least-looking ones do not."""
    model, processor = load_demo()
    samples = held_out(32, seed=3)

    def answer() -> list[bool]:
        given = answer_all(model, processor, samples, steps=0)
        return [a.is_right(s) for a, s in zip(given, samples, strict=True)]

    found = analysis.ablate(model, answer, 3, processor=processor)
    print({policy: found.masked_accuracy(policy) for policy in found.heads}, found.accuracy)
    assert found.against_base("efr").mean_difference < -0.15
    assert found.against_base("efr").p_value < 0.01
    for policy in ("random", "lowest_ratio"):
        assert found.masked_accuracy(policy) > found.accuracy - 0.05
