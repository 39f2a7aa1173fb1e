"""The findings as pictures. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vrga_ext.files import replacing
from vrga_ext.reproduce.findings import head_means
from vrga_ext.reproduce.measure import Mean, Run
from vrga_ext.reproduce.study import Study, control_label
from vrga_ext.viz import draw_heads, style

_DPI = 110
_OFTEN = 0.5  # share of the questions for which a head that is marked was selected


def draw_figures(studies: Sequence[Study], folder: Path) -> list[Path]:
    """Write one PNG for each finding; returns their paths."""
    paths = []
    for name, draw in DRAWINGS.items():
        paths.append(folder / name)
        with replacing(paths[-1]) as file:
            draw(studies).savefig(file, format="png", dpi=_DPI, facecolor="white")
    return paths


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _heads(studies: Sequence[Study]) -> Figure:
    """A row per model: EFR against RRAR, and R against H, a dot per head."""
    figure = _figure(10.5, 3.6 * len(studies))
    for row, study in zip(figure.subplots(len(studies), 2, squeeze=False), studies, strict=True):
        attention = study.plain[study.short].attention
        means = head_means(attention)
        often = attention.selected.mean(0) >= _OFTEN
        left, right = row
        finite = np.isfinite(means["EFR"]) & np.isfinite(means["RRAR"])
        for which, color, name in (
            (finite & ~often, "#8c959f", "other heads"),
            (finite & often, style.REGION, "selected for most questions"),
        ):
            left.scatter(
                means["EFR"][which], means["RRAR"][which], s=26, color=color, alpha=0.85,
                linewidths=0, label=name,
            )  # fmt: skip
        left.set_xscale("log")
        left.set_yscale("log")
        style.plot_area(left, "EFR = $H_{img}$ / $R_{img}$ (nats)", "RRAR at the question")
        style.even_line(left, 1.0)
        style.legend(left, "upper right")
        style.heading(left, f"{study.name}: EFR and aim")
        heads = [(attention.layers[layer], int(head)) for layer, head in np.argwhere(often)]
        draw_heads(right, means["R"], means["H"], selected=heads, layers=attention.layers)
        right.set_ylim(top=1.3 * np.nanmax(means["R"]))  # room for the legend
        style.heading(right, f"{study.name}: entropy and ratio")
    return figure


def _masking(studies: Sequence[Study]) -> Figure:
    rows = {"nothing": [s.plain[s.short] for s in studies]}
    rows |= {mask: [s.masks[mask] for s in studies] for mask in studies[0].masks}
    figure = _figure(8.5, 1.3 + (0.22 + 0.16 * len(studies)) * len(rows))
    axes = figure.subplots()
    _bars(axes, studies, rows)
    style.heading(axes, f"Picture hidden while {studies[0].short} answers are written, from …")
    return figure


def _length(studies: Sequence[Study]) -> Figure:
    """Accuracy and RRAR by mode, and the drift of the aim in the long mode; standard errors."""
    figure = _figure(14, 4.2)
    accuracy, rrar, drift = figure.subplots(1, 3)
    modes = studies[0].task.modes
    for index, study in enumerate(studies):
        color = style.LINES[index % len(style.LINES)]
        for runs, line, what in (
            (study.plain, "-", "without VRGA"),
            (study.guided, "--", "with VRGA"),
        ):
            kind = {"color": color, "linestyle": line, "marker": "o", "markersize": 4}
            right = [runs[mode].accuracy for mode in modes]
            ratios = [
                Mean.from_values(runs[mode].attention.over_selected(runs[mode].attention.answer))
                for mode in modes
            ]
            label = f"{study.name}, {what}"
            for axes, found, scale in ((accuracy, right, 100), (rrar, ratios, 1)):
                axes.errorbar(
                    range(len(modes)),
                    [scale * mean.value for mean in found],
                    [scale * mean.error for mean in found],
                    capsize=2, label=label, **kind,
                )  # fmt: skip
            values = runs[study.long].attention.drift
            there = np.isfinite(values).sum(0) >= len(values) / 2
            means = [Mean.from_values(column) for column in values[:, there].T]
            drift.errorbar(
                np.flatnonzero(there) + 1,
                [mean.value for mean in means],
                [mean.error for mean in means],
                capsize=2, label=label, **kind,
            )  # fmt: skip
    for axes, title, label in (
        (accuracy, "Accuracy", "right answers, %"),
        (rrar, "Aim while the answer is written", "RRAR of the visual heads"),
    ):
        style.plot_area(axes, studies[0].task.axis, label)
        axes.set_xticks(range(len(modes)), [mode.removesuffix(" steps") for mode in modes])
        style.heading(axes, title)
    style.plot_area(drift, studies[0].task.drift_axis, "RRAR of the visual heads", whole_x=True)
    style.heading(drift, f"Drift of the aim, {studies[0].long}")
    for axes in (rrar, drift):
        axes.set_ylim(bottom=0)
    accuracy.set_ylim(0, 103)
    style.legend(accuracy, "lower left")
    return figure


def _recovery(studies: Sequence[Study]) -> Figure:
    gamma = studies[0].task.config.gamma
    rows = {"without VRGA": [s.plain[s.long] for s in studies]}
    rows |= {rf"VRGA, $\gamma$ = {g:g}": [s.gammas[g] for s in studies] for g in studies[0].gammas}
    rows |= {rf"VRGA, $\gamma$ = {gamma:g}": [s.guided[s.long] for s in studies]}
    rows |= {control_label(c): [s.controls[c] for s in studies] for c in studies[0].controls}
    figure = _figure(8.5, 1.3 + (0.22 + 0.16 * len(studies)) * len(rows))
    axes = figure.subplots()
    _bars(axes, studies, rows)
    style.heading(axes, f"VRGA and its controls, {studies[0].long}")
    return figure


def _bars(axes: style.Axes, studies: Sequence[Study], rows: Mapping[str, Sequence[Run]]) -> None:
    """Accuracy with its standard error, a bar for each model; a dot for each seed's pictures."""
    height = 0.8 / len(studies)
    for index, study in enumerate(studies):
        color = style.LINES[index % len(style.LINES)]
        places = np.arange(len(rows)) - 0.4 + (index + 0.5) * height
        runs = [row[index] for row in rows.values()]
        means = [run.accuracy for run in runs]
        axes.barh(
            places, [100 * mean.value for mean in means], 0.86 * height, color=color, alpha=0.55,
            label=study.name,
        )  # fmt: skip
        axes.errorbar(
            [100 * mean.value for mean in means], places, xerr=[100 * mean.error for mean in means],
            fmt="none", ecolor=style.INK, elinewidth=1.1, capsize=2,
        )  # fmt: skip
        seeds = [[100 * value for value in study.by_seed(run).values()] for run in runs]
        if len(seeds[0]) > 1:
            for place, values in zip(places, seeds, strict=True):
                axes.plot(values, [place] * len(values), "o", color=color, markersize=2.6)
    style.plot_area(axes, "right answers, %", "")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 103)
    axes.grid(False, axis="y")
    if len(studies) > 1:
        axes.legend(
            frameon=False, fontsize=9, labelcolor=style.INK, loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
        )  # fmt: skip


DRAWINGS: dict[str, Callable[[Sequence[Study]], Figure]] = {
    "heads.png": _heads,
    "masking.png": _masking,
    "length.png": _length,
    "recovery.png": _recovery,
}
