"""Results as one figure: cost against each swept quantity, and ratios to the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.implementations import is_ours
from bench.report import base_of
from bench.results import Report, Result, grouped
from vrga_ext.files import replacing


def draw(report: Report, path: Path) -> bool:
    """Write the figure; False if the results hold nothing to draw.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(report.results)
    sweeps = sorted({r.extra["sweep"] for r in report.results if "sweep" in r.extra})
    ops = [op for op in groups if op in ("decode_attention", "row_statistics")]
    panels = len(sweeps) + len(ops)
    if not panels:
        return False
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5.2 * columns, 4.2 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[panels:]:
        axis.axis("off")
    for axis, sweep in zip(axes.flat, sweeps, strict=False):
        _draw_sweep(axis, sweep, [r for r in report.results if r.extra.get("sweep") == sweep])
    for axis, op in zip(axes.flat[len(sweeps) :], ops, strict=False):
        _draw_ratios(axis, op, groups[op])
    shown = [
        report.machine[key] for key in ("GPU", "CPU", "torch", "commit") if key in report.machine
    ]
    figure.suptitle("\n".join(filter(None, [", ".join(shown), report.note])), fontsize=9)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
    return True


def _draw_sweep(axis: Any, sweep: str, results: list[Result]) -> None:
    for implementation in dict.fromkeys(r.implementation for r in results):
        points = sorted(
            (r.extra["x"], r.seconds * 1e6) for r in results if r.implementation == implementation
        )
        style = "o-" if is_ours(implementation) else "s--"
        axis.plot(*zip(*points, strict=True), style, markersize=3, label=implementation)
    values = [r.extra["x"] for r in results]
    if min(values) > 0 and max(values) / min(values) >= 16:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set_xlabel(sweep)
    axis.set_ylabel("µs")
    axis.legend(fontsize=7)


def _draw_ratios(axis: Any, op: str, cases: dict[str, dict[str, Result]]) -> None:
    names = list(
        dict.fromkeys(name for implementations in cases.values() for name in implementations)
    )
    height = 0.8 / len(cases)
    for i, (case, implementations) in enumerate(cases.items()):
        base = base_of(implementations.values()).seconds
        at = [n + i * height for n, name in enumerate(names) if name in implementations]
        ratios = [implementations[name].seconds / base for name in names if name in implementations]
        axis.barh(at, ratios, height, label=case)
    axis.set_yticks([n + 0.4 - height / 2 for n in range(len(names))], names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel(
        f"{op}: time over that of {base_of(next(iter(cases.values())).values()).implementation}"
    )
    axis.legend(fontsize=6, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
