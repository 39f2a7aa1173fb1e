"""The method's effects on the shipped demo model, in plain ``generate``, on held-out questions.

Every comparison is paired: the same questions, greedy decoding. A binomial standard error at
n = 512 is at most 2.2 points; bounds leave several of them.
"""

from __future__ import annotations

import pytest

from vrga_ext.analysis import blinded
from vrga_ext.demo import interventions as controls
from vrga_ext.demo.answers import DEMO_CONFIG, held_out, load_demo
from vrga_ext.demo.evaluate import Score, aim, score
from vrga_ext.demo.scenes import COLORS

COUNT, SEED = 512, 1
LONG, SHORT, DIRECT = 16, 4, 0
CHANCE = 1 / len(COLORS)


@pytest.fixture(scope="module")
def demo():
    return load_demo()


@pytest.fixture(scope="module")
def samples():
    return held_out(COUNT, SEED)


@pytest.fixture(scope="module")
def plain(demo, samples):
    return {steps: score(*demo, samples, steps) for steps in (DIRECT, SHORT, LONG)}


@pytest.fixture(scope="module")
def boosted(demo, samples):
    return {steps: score(*demo, samples, steps, DEMO_CONFIG) for steps in (DIRECT, SHORT, LONG)}


def _show(name: str, found: Score, base: Score) -> None:
    paired = found.against(base)
    print(
        f"{name}: {found.accuracy:.3f} ± {found.error:.3f} (plain {base.accuracy:.3f}), "
        f"+{paired.better} -{paired.worse}, z {paired.z:.1f}"
    )


def test_reads_pictures_well_and_long_answers_hurt(plain):
    assert plain[DIRECT].accuracy > 0.98
    assert plain[SHORT].accuracy > 0.98
    assert plain[LONG].accuracy < plain[SHORT].accuracy - 0.08


def test_visual_heads_aim_at_the_object(demo, samples):
    question, answer = aim(*demo, samples[:128], DIRECT, DEMO_CONFIG.replace(gamma=0.0))
    for found in (question, answer):
        print(f"RRAR {found.selected_mean:.1f} of visual heads, {found.other_mean:.1f} of others")
        assert found.selected_mean > 3 * found.other_mean


def test_long_answers_scatter_the_aim_and_the_boost_restores_it(demo, samples):
    _, short = aim(*demo, samples[:64], DIRECT, DEMO_CONFIG.replace(gamma=0.0))
    _, long = aim(*demo, samples[:64], LONG, DEMO_CONFIG.replace(gamma=0.0))
    _, steered = aim(*demo, samples[:64], LONG, DEMO_CONFIG)
    print(
        f"RRAR of visual heads: {short.selected_mean:.1f} direct, {long.selected_mean:.1f} after "
        f"{LONG} steps, {steered.selected_mean:.1f} with VRGA"
    )
    assert long.selected_mean < 0.8 * short.selected_mean
    assert long.selected_mean < steered.selected_mean


@pytest.mark.parametrize("steps", [DIRECT, SHORT])
def test_boost_costs_nothing_where_the_model_is_right(plain, boosted, steps):
    _show(f"{steps} steps", boosted[steps], plain[steps])
    assert boosted[steps].accuracy >= plain[steps].accuracy - 0.005


def test_boost_gains_where_long_answers_hurt(plain, boosted):
    _show(f"{LONG} steps", boosted[LONG], plain[LONG])
    assert boosted[LONG].against(plain[LONG]).z > 3


def test_other_tokens_or_other_heads_gain_nothing(demo, samples, plain, boosted):
    for name, hook in {
        "permuted tokens": controls.permuted_tokens(SEED),
        "random other heads": controls.random_heads(SEED),
    }.items():
        found = score(*demo, samples, LONG, DEMO_CONFIG, hook)
        _show(name, found, plain[LONG])
        assert found.against(plain[LONG]).z < 2
        assert boosted[LONG].against(found).z > 3


def test_all_image_tokens_beside_the_region(demo, samples, plain, boosted):
    found = score(*demo, samples, LONG, DEMO_CONFIG, controls.all_image_tokens())
    _show("all image tokens in the visual heads", found, plain[LONG])
    _show("region against all image tokens", boosted[LONG], found)


def test_hiding_the_picture_from_visual_heads_only_is_fatal(demo, samples, plain):
    blind = DEMO_CONFIG.replace(mode="mask")
    base = plain[DIRECT]
    visual = score(*demo, samples, DIRECT, blind, blinded())
    _show("hidden from the visual heads", visual, base)
    assert visual.accuracy < 2 * CHANCE
    for name, choose in {
        "random other heads": controls.random_heads(SEED),
        "lowest-R heads": controls.lowest_ratio_heads(),
    }.items():
        found = score(*demo, samples, DIRECT, blind, blinded(choose))
        _show(f"hidden from {name}", found, base)
        assert found.accuracy > base.accuracy - 0.02
