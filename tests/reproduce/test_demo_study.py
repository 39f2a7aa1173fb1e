"""The paper's findings on the shipped demo model, in plain ``generate``, on held-out pictures.

Every comparison is paired: the same questions, greedy decoding. A binomial standard error at
n = 96 is at most 5.1 points; bounds leave several of them.
"""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vrga_ext.demo.answers import MODEL_PATH, load_demo
from vrga_ext.demo.scenes import COLORS
from vrga_ext.reproduce import figures, report, run
from vrga_ext.reproduce.findings import FINDINGS, claims, tables
from vrga_ext.reproduce.study import control_label, study
from vrga_ext.reproduce.tasks import DemoTask, draw_samples

pytestmark = pytest.mark.slow  # one study serves them all: most of a minute
COUNT, SEEDS = 48, (1, 2)
DIRECT, SHORT, LONG = "direct", "4 steps", "16 steps"
CHANCE = 1 / len(COLORS)


@pytest.fixture(scope="module")
def found():
    model, processor = load_demo()
    task = DemoTask(processor, draw_samples(COUNT, SEEDS), (0, 4, 16), gammas=())
    return study("shipped", model, processor, task, lambda what, count: None)


def test_reads_pictures_well_and_long_answers_hurt(found):
    plain = found.plain
    assert plain[DIRECT].accuracy.value > 0.98
    assert plain[SHORT].accuracy.value > 0.98
    assert plain[LONG].accuracy.value < plain[SHORT].accuracy.value - 0.08


def test_visual_heads_aim_at_the_object(found):
    attention = found.plain[DIRECT].attention
    for rrar in (attention.question, attention.answer):
        assert attention.over_selected(rrar).mean() > 3 * attention.over_others(rrar).mean()


def test_long_answers_scatter_the_aim_and_the_boost_restores_it(found):
    def aimed(runs, mode):
        return np.nanmean(runs[mode].attention.over_selected(runs[mode].attention.answer))

    assert aimed(found.plain, LONG) < 0.8 * aimed(found.plain, DIRECT)
    assert aimed(found.plain, LONG) < 0.95 * aimed(found.guided, LONG)
    drift = np.nanmean(found.plain[LONG].attention.drift, axis=0)
    assert drift.shape == (17,)  # the target's name in sixteen steps and in the reply
    assert drift[12:16].mean() < 0.9 * drift[:4].mean()


@pytest.mark.parametrize("mode", [DIRECT, SHORT])
def test_boost_costs_nothing_where_the_model_is_right(found, mode):
    assert found.guided[mode].accuracy.value >= found.plain[mode].accuracy.value - 0.01


def test_boost_gains_where_long_answers_hurt(found):
    assert found.guided[LONG].against(found.plain[LONG]).z > 3


@pytest.mark.parametrize("control", ["tokens elsewhere", "other heads"])
def test_other_tokens_or_other_heads_gain_nothing(found, control):
    other = found.controls[control]
    assert other.against(found.plain[LONG]).z < 2
    assert found.guided[LONG].against(other).z > 3


def test_what_cannot_be_compared_is_left_open(found):
    """Answers of one token have no rows: their claims have no verdict, the others keep theirs."""
    bare = {}
    for mode, each in found.plain.items():
        answer = np.full_like(each.attention.answer, np.nan)
        bare[mode] = replace(
            each, recorded=replace(each.attention, answer=answer, drift=answer[:, 0, :1])
        )
    verdicts = [
        (before.holds, after.holds)
        for before, after in zip(claims(found), claims(replace(found, plain=bare)), strict=True)
    ]
    changed = [after for before, after in verdicts if before != after]
    assert changed
    assert all(after is None for after in changed)


def test_true_region_gains_at_least_as_much(found):
    assert found.controls["true region"].against(found.plain[LONG]).z > 3
    assert found.controls["true region"].accuracy.value > found.guided[LONG].accuracy.value - 0.05


def test_hiding_the_picture_from_visual_heads_only_is_fatal(found):
    assert found.masks["visual heads"].accuracy.value < 2 * CHANCE
    for mask in ("as many others", "as many of lowest R"):
        assert found.masks[mask].accuracy.value > found.plain[DIRECT].accuracy.value - 0.02


def test_claims_agree_with_the_numbers_and_cover_every_finding(found):
    verdicts = {claim.text: claim.holds for claim in claims(found)}
    assert {claim.finding for claim in claims(found)} == set(range(len(FINDINGS)))
    assert verdicts["with VRGA more answers after 16 steps are right"]
    assert verdicts["hidden from the visual heads: at least half of the accuracy is lost"]
    assert verdicts["naming the region in the prompt aims them better than a direct answer"] is None
    assert not verdicts["R grows linearly with H over the heads (Pearson r > 0.9)"]


def test_a_model_that_is_never_right_shows_nothing(found):
    def wrong(runs):
        return {name: replace(run, scores=0 * run.scores) for name, run in runs.items()}

    names = ("plain", "guided", "controls", "masks")
    never = replace(found, **{name: wrong(getattr(found, name)) for name in names})
    verdicts = [claim.holds for claim in claims(never) if claim.finding in (1, 3)]
    accurate = {True: 1, False: 4, None: 5}  # the aim is as good as it was
    assert {holds: verdicts.count(holds) for holds in accurate} == accurate


def test_controls_that_cannot_have_as_many_say_how_many_they_have(found):
    """Too few tokens or heads are left: the numbers stand in the claims and in the tables."""

    def texts(study):
        lines = [f"{claim.text}: {claim.figures}" for claim in claims(study)]
        return lines + [" ".join(row) for table in tables([study]) for row in table.rows]

    assert not any("tokens, not" in text or "heads, not" in text for text in texts(found))
    fewer = replace(found.controls["tokens elsewhere"], boosted=6.0)
    random = replace(found.masks["as many others"], heads=2.5)
    short = replace(
        found,
        controls=found.controls | {"tokens elsewhere": fewer},
        masks=found.masks | {"as many others": random},
    )
    told = [text for text in texts(short) if " tokens, not " in text or " heads, not " in text]
    assert len(told) == 4
    boosted, heads = found.guided[LONG].boosted, found.masks["visual heads"].heads
    assert sum(f"(6 tokens, not {boosted:g})" in text for text in told) == 2
    assert sum(f"(2.5 heads, not {heads:g})" in text for text in told) == 2


def test_what_was_boosted_is_counted(found):
    guided, controls, masks = found.guided[LONG], found.controls, found.masks
    assert 1 < guided.boosted < 36
    assert controls["whole image"].boosted == 36
    assert controls["true region"].boosted == 1
    assert guided.heads == controls["other heads"].heads == controls["tokens elsewhere"].heads
    assert masks["visual heads"].heads == masks["as many others"].heads
    assert masks["per layer, lowest EFR"].heads == 4 * 2  # 5 / 16 of 8 heads, in 4 layers


def test_tables_hold_every_condition(found):
    masks, lengths, boosts, seeds = tables([found, found])
    assert [row[0] for row in masks.rows][1:] == list(found.masks)
    assert [row[0] for row in lengths.rows] == [DIRECT, SHORT, LONG]
    assert [row[0] for row in boosts.rows][2:] == [control_label(name) for name in found.controls]
    assert seeds.header[1:] == ["seed 1", "seed 2"]
    for table in (masks, lengths, boosts, seeds):
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_command_measures_draws_and_reports(found, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'vrga_ext[viz]'")
    asked = []

    def measured(name, model, processor, task, step):
        step("asking", len(task.groups))
        asked.append((name, task.about))
        return found

    monkeypatch.setattr(run, "study", measured)
    with (tmp_path / "printed.txt").open("w") as printed:
        run.reproduce([str(MODEL_PATH)], None, tmp_path, 2, console=Console(file=printed))
    assert asked == [("shipped", "3 x 2 pictures drawn afresh (seeds 1, 2, 3)")]
    text = (tmp_path / "README.md").read_text()
    assert all(finding in text for finding in FINDINGS)
    assert "\n    python -m vrga_ext reproduce --samples 2 --output FOLDER\n" in text
    assert str(tmp_path) not in text
    assert "z = (better - worse)" in (tmp_path / "printed.txt").read_text()
    for name in report.FIGURES:
        assert f"]({name})" in text
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 800
    assert sorted(figures.DRAWINGS) == sorted(report.FIGURES)


def test_brackets_in_names_are_no_markup(found, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'vrga_ext[viz]'")

    def measured(name, model, processor, task, step):
        step(f"{name}: asking", len(task.groups))
        return replace(found, name=name)

    monkeypatch.setattr(run, "study", measured)
    monkeypatch.setattr(run, "_is_shipped", lambda where: False)
    monkeypatch.chdir(tmp_path)
    Path("tr[v0]").symlink_to(MODEL_PATH)
    with open("printed.txt", "w") as printed:
        console = Console(file=printed)
        run.reproduce(["tr[v0]"], None, Path("out[v2]"), 2, console=console)
    text = Path("printed.txt").read_text()
    assert "tr[v0]: asking" in text
    assert text.count("tr[v0]") > 8  # every table's column
    assert "report written to out[v2]/README.md" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_report_on_a_terminal_without_unicode(found, encoding):
    """Signs that it lacks are spelled, so that none of them becomes the "?" of the legend."""
    raw = BytesIO()
    stream = TextIOWrapper(raw, encoding=encoding)
    report.print_report([replace(found, name="m\x1b[2J[v0]")], Console(file=stream, width=160))
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert "yes the statement holds; no it does not" in " ".join(text.split())
    assert r"m\x1b[2J[v0]" in text
    assert "\x1b" not in text
    assert ("±" in text) == (encoding == "latin-1")
    assert " -> " in text
    boxed = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in boxed}) <= len(tables([found])) + len(FINDINGS)
    assert all(line.endswith("|") for line in boxed)
