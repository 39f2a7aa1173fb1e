"""From the outcomes to tables, and to a verdict on each of the paper's statements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vrga_ext.analysis import compare, linear_fit
from vrga_ext.reproduce.measure import ImageAttention, Mean, Run
from vrga_ext.reproduce.study import CONTROLS, LAYER_MASKS, MASKS, Study, control_label
from vrga_ext.reproduce.vqa import GUIDED
from vrga_ext.selection import RowStatistics

FINDINGS = (
    "EFR picks the heads that are grounded in the picture",
    "Hiding the picture from them collapses accuracy, from other heads it does not",
    "Longer reasoning scatters the aim and costs accuracy",
    "VRGA recovers it",
)
SURE = 3.0  # least standard errors of a difference that counts
LIKELY = 2.0  # standard errors below which a gain is denied
PEARSON = 0.9  # the paper's bound on r
COLLAPSE = 0.5  # share of the accuracy that a collapse loses at least
HARDLY = 0.05  # accuracy, a share: a loss below this hardly matters


class Claim(NamedTuple):
    """A statement of the paper, tested on one model.

    Attributes
    ----------
    finding : int
        Index into ``FINDINGS``.
    text : str
        The statement.
    holds : bool, optional
        Whether it holds; None where it cannot be tested.
    figures : str
        The numbers behind the verdict.
    """

    finding: int
    text: str
    holds: bool | None
    figures: str


class Table(NamedTuple):
    """Rows of text under a header.

    Attributes
    ----------
    title : str
        What the table shows.
    header : sequence of str
        Name of each column.
    rows : sequence of sequences of str
        A cell for each column.
    note : str
        What stands below the table; may be empty.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def claims(study: Study) -> list[Claim]:
    """Every statement, in the order of the findings; models of one task have the same ones."""
    return _heads(study) + _masks(study) + _lengths(study) + _recovery(study)


def rank_correlation(values: np.ndarray, others: np.ndarray) -> float:
    """Spearman's correlation over heads; NaN if either side has equal values only.

    Examples
    --------
    >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([5.0, 4.0, 1.0]))
    -1.0
    """
    if min(len(np.unique(values)), len(np.unique(others))) < 2:
        return math.nan
    return float(np.corrcoef(_ranks(values), _ranks(others))[0, 1])


def head_means(attention: ImageAttention) -> dict[str, np.ndarray]:
    """Each head's mean over the questions, ``[L, H]``: R, H, their EFR, and RRAR."""
    ratio, entropy, rrar = (
        np.nanmean(values, axis=0)
        for values in (attention.image_ratio, attention.image_entropy, attention.question)
    )
    efr = RowStatistics.from_ratio(torch.from_numpy(ratio), torch.from_numpy(entropy)).efr
    return {"EFR": efr.numpy(), "R": ratio, "H": entropy, "RRAR": rrar}


def _heads(study: Study) -> list[Claim]:
    found = study.plain[study.short].attention
    selected, others = found.over_selected(found.question), found.over_others(found.question)
    means = {name: values.flatten() for name, values in head_means(found).items()}
    seen = np.isfinite(means["EFR"]) & np.isfinite(means["RRAR"])  # heads that see the picture
    ranks = {n: rank_correlation(means[n][seen], means["RRAR"][seen]) for n in ("EFR", "R", "H")}
    fit = linear_fit(torch.from_numpy(means["R"]), torch.from_numpy(means["H"]))
    return [
        Claim(
            0,
            "the visual heads aim at the region more than the others do (RRAR)",
            _exceeds(selected, others),
            f"{_number(Mean.from_values(selected))} against {_number(Mean.from_values(others))}",
        ),
        Claim(
            0,
            "the lower its EFR, the better a head aims (Spearman with RRAR, over heads)",
            None if math.isnan(ranks["EFR"]) else ranks["EFR"] * math.sqrt(seen.sum() - 1) < -SURE,
            ", ".join(f"{name} {rank:+.2f}" for name, rank in ranks.items()),
        ),
        Claim(
            0,
            f"R grows linearly with H over the heads (Pearson r > {PEARSON})",
            None if math.isnan(fit.pearson_r) else fit.pearson_r > PEARSON,
            f"r = {fit.pearson_r:.2f}, R = {fit.slope:.2f} H {fit.intercept:+.2f}",
        ),
    ]


def _masks(study: Study) -> list[Claim]:
    plain = study.plain[study.short].accuracy.value

    def lost(mask: str) -> float:
        return plain - study.masks[mask].accuracy.value

    def tested(holds: bool) -> bool | None:  # a model without right answers cannot lose any
        return holds if plain > 0 else None

    def figures(*masks: str) -> str:
        left = ", ".join(
            f"{study.masks[mask].accuracy.value:.1%}{_unlike(study, mask)}" for mask in masks
        )
        return f"{plain:.1%} → {left}"

    found = []
    for where, (chosen, *controls) in (
        ("the visual heads", tuple(MASKS)),
        ("the paper's heads of every layer", tuple(LAYER_MASKS)),
    ):
        found += [
            Claim(
                1,
                f"hidden from {where}: at least half of the accuracy is lost",
                tested(lost(chosen) >= COLLAPSE * plain),
                figures(chosen),
            ),
            Claim(
                1,
                f"instead of {where}, hidden from as many random ones, or those of lowest R: less "
                f"than {100 * HARDLY:.0f} points are lost",
                tested(all(lost(mask) < HARDLY for mask in controls)),
                figures(*controls),
            ),
        ]
    return found


def _lengths(study: Study) -> list[Claim]:
    short, long = study.plain[study.short], study.plain[study.long]
    found = {mode: run.attention for mode, run in study.plain.items()}
    selected = {
        mode: attention.over_selected(attention.answer) for mode, attention in found.items()
    }
    every = {mode: attention.over_all(attention.answer) for mode, attention in found.items()}

    def lower(values: dict[str, np.ndarray], less: str, more: str) -> tuple[bool | None, str]:
        figures = (
            f"{_number(Mean.from_values(values[more]))} → {_number(Mean.from_values(values[less]))}"
        )
        return _exceeds(values[more], values[less]), figures

    guided: tuple[bool | None, str] = None, "no such prompt"
    if GUIDED in selected:
        guided = lower(every, study.short, GUIDED)
    right, wrong = (selected[study.long][kept] for kept in (long.scores > 0.5, long.scores <= 0.5))
    apart = Mean.from_values(right), Mean.from_values(wrong)
    errors = float(np.hypot(apart[0].error, apart[1].error))
    first, last = _quarters(long.attention.drift)
    return [
        Claim(
            2,
            f"answers after {study.long} are less often right than {study.short} ones",
            long.against(short).z < -SURE,
            f"{short.accuracy.value:.1%} → {long.accuracy.value:.1%}",
        ),
        Claim(
            2,
            "while they are written the visual heads aim less at the region (RRAR)",
            *lower(selected, study.long, study.short),
        ),
        Claim(2, "so do all heads on average", *lower(every, study.long, study.short)),
        Claim(2, "naming the region in the prompt aims them better than a direct answer", *guided),
        Claim(
            2,
            "the aim drifts: RRAR is lower in the last quarter of the answer than in the first",
            _exceeds(first, last),
            f"{_number(Mean.from_values(first))} → {_number(Mean.from_values(last))}",
        ),
        Claim(
            2,
            "right answers aimed better than wrong ones",
            None if errors != errors else apart[0].value - apart[1].value > SURE * errors,
            f"{_number(apart[0])} against {_number(apart[1])}",
        ),
    ]


def _recovery(study: Study) -> list[Claim]:
    plain, guided = study.plain[study.long], study.guided[study.long]
    ratios = [run.attention.over_selected(run.attention.answer) for run in (plain, guided)]
    short = study.guided[study.short].accuracy.value, study.plain[study.short].accuracy.value
    whole = guided.against(study.controls["whole image"])

    def no_gain(control: str) -> tuple[bool, str]:
        found = study.controls[control]
        apart = guided.against(found).z > SURE  # else the questions are too few to deny a gain
        figures = _gain(found, plain) + _unlike(study, control)
        return apart and found.against(plain).z < LIKELY, figures

    return [
        Claim(
            3,
            f"with VRGA more answers after {study.long} are right",
            guided.against(plain).z > SURE,
            _gain(guided, plain),
        ),
        Claim(
            3,
            "and the visual heads, reweighted, aim better (RRAR)",
            _exceeds(ratios[1], ratios[0]),
            f"{_number(Mean.from_values(ratios[0]))} → {_number(Mean.from_values(ratios[1]))}",
        ),
        Claim(
            3,
            f"it costs {study.short} answers less than 1 point",
            short[0] > short[1] - 0.01 if short[1] > 0 else None,
            f"{short[1]:.1%} → {short[0]:.1%}",
        ),
        Claim(3, "boosting as many tokens elsewhere gains nothing", *no_gain("tokens elsewhere")),
        Claim(3, "boosting the region in other heads gains nothing", *no_gain("other heads")),
        Claim(
            3,
            "the region gains more than boosting the whole image",
            whole.z > SURE,
            f"{100 * whole.mean_difference:+.1f} points, z {whole.z:.1f}",
        ),
    ]


def tables(studies: Sequence[Study]) -> list[Table]:
    """One table of accuracies for each of the findings 2 to 4, and the seeds."""
    first = studies[0]
    names = [study.name for study in studies]

    def row(name: str, cells: Sequence[str]) -> tuple[str, ...]:
        return (name, *cells)

    masks = [row("nothing hidden", [_accuracy(s.plain[s.short]) for s in studies])]
    for mask in first.masks:
        cells = [_accuracy(s.masks[mask], s.plain[s.short]) + _unlike(s, mask) for s in studies]
        masks.append(row(mask, cells))
    lengths = []
    for mode in first.task.modes:
        cells = []
        for s in studies:
            run = s.plain[mode]
            cells += [
                _accuracy(run),
                _number(Mean.from_values(run.attention.over_selected(run.attention.answer))),
                _accuracy(s.guided[mode], run),
            ]
        lengths.append(row(mode, cells))
    heading = [
        f"{name}: {what}" for name in names for what in ("without VRGA", "RRAR", "with VRGA")
    ]
    boosts = [row("without VRGA", [_accuracy(s.plain[s.long]) for s in studies])]
    for gamma in first.gammas:
        cells = [_accuracy(s.gammas[gamma], s.plain[s.long]) for s in studies]
        boosts.append(row(f"VRGA, gamma {gamma:g}", cells))
    cells = [_accuracy(s.guided[s.long], s.plain[s.long]) for s in studies]
    boosts.append(row(f"VRGA, gamma {first.task.config.gamma:g}", cells))
    for control in CONTROLS:
        cells = [
            _accuracy(s.controls[control], s.plain[s.long]) + _unlike(s, control) for s in studies
        ]
        boosts.append(row(control_label(control), cells))
    found = [
        Table(
            f"Picture hidden while {first.short} answers are written",
            ["hidden from", *names],
            masks,
            "Accuracy in %, with its standard error; z of the paired difference to nothing hidden.",
        ),
        Table(
            "Length of the reasoning",
            [first.task.axis, *heading],
            lengths,
            "RRAR of the visual heads while the answer is written; z to the same without VRGA.",
        ),
        Table(
            f"VRGA and its controls, {first.long}",
            ["boosted", *names],
            boosts,
            "z of the paired difference to the first row.",
        ),
    ]
    if len(np.unique(first.task.groups)) > 1:
        seeds = []
        for s in studies:
            for what, run in (("without VRGA", s.plain[s.long]), ("with VRGA", s.guided[s.long])):
                each = [f"{100 * value:.1f}" for value in s.by_seed(run).values()]
                seeds.append(row(f"{s.name}, {what}", each))
        header = ["accuracy in %", *(f"seed {seed}" for seed in np.unique(first.task.groups))]
        found.append(Table(f"The same for each seed of the pictures, {first.long}", header, seeds))
    return found


def _quarters(drift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the first and the last quarter of each answer's values, ``[n]`` each."""
    ends: tuple[list[float], list[float]] = [], []
    for line in drift:
        there = line[np.isfinite(line)]
        quarter = -(-len(there) // 4)
        for end, part in zip(ends, (there[:quarter], there[len(there) - quarter :]), strict=True):
            end.append(float(part.mean()) if quarter else np.nan)
    return np.array(ends[0]), np.array(ends[1])


def _exceeds(values: np.ndarray, others: np.ndarray) -> bool | None:
    """Whether paired values are higher by ``SURE`` standard errors; None without a pair."""
    if not (np.isfinite(values) & np.isfinite(others)).any():
        return None
    paired = compare(values, others)
    return paired.standard_error > 0 and paired.mean_difference > SURE * paired.standard_error


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1 up; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[group]
    return ranks


def _number(mean: Mean) -> str:
    return f"{mean.value:.1f} ± {mean.error:.1f}"


def _accuracy(run: Run, base: Run | None = None) -> str:
    text = f"{100 * run.accuracy.value:.1f} ± {100 * run.accuracy.error:.1f}"
    return text if base is None else f"{text} (z {run.against(base).z:+.1f})"


def _unlike(study: Study, control: str) -> str:
    """Numbers of tokens and heads, if a control has not as many as it should; else empty."""
    if control in MASKS or control in LAYER_MASKS:
        run = study.masks[control]
        original = study.masks[next(iter(MASKS if control in MASKS else LAYER_MASKS))]
    elif control in ("tokens elsewhere", "other heads"):
        run, original = study.controls[control], study.guided[study.long]
    else:
        return ""
    counts = (run.boosted, original.boosted, "tokens"), (run.heads, original.heads, "heads")
    apart = [f"{mine:g} {what}, not {wanted:g}" for mine, wanted, what in counts if mine != wanted]
    return f" ({'; '.join(apart)})" if apart else ""


def _gain(run: Run, base: Run) -> str:
    paired = run.against(base)
    return (
        f"{base.accuracy.value:.1%} → {run.accuracy.value:.1%}, "
        f"{paired.better} better, {paired.worse} worse, z {paired.z:.1f}"
    )
