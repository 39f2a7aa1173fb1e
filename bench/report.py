"""Results as tables: on the terminal, and as a Markdown page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from bench.implementations import NOT_ENABLED, is_ours
from bench.results import Report, Result, grouped

Column = Callable[[Result, Result], str]  # result, base of its case -> cell; "" is nothing to say


def base_of(implementations: Iterable[Result]) -> Result:
    """What the others of a case are compared with: the model as it was, or our first one."""
    implementations = list(implementations)
    named = [r for r in implementations if r.implementation == NOT_ENABLED] or [
        r for r in implementations if is_ours(r.implementation)
    ]
    return (named or implementations)[0]


def _microseconds(result: Result, base: Result) -> str:
    return f"{result.seconds * 1e6:.1f}"


def _bandwidth(result: Result, base: Result) -> str:
    moved = result.extra.get("bytes")
    return f"{moved / result.seconds / 1e9:.1f}" if moved else ""


def _copy_share(result: Result, base: Result) -> str:
    moved, copy = result.extra.get("bytes"), result.extra.get("copy_gbs")
    return f"{moved / result.seconds / 1e9 / copy:.2f}" if moved and copy else ""


def _ratio(result: Result, base: Result) -> str:
    return f"{result.seconds / base.seconds:.3g}"


def _number(key: str, scale: float, form: str) -> Column:
    def column(result: Result, base: Result) -> str:
        value = result.extra.get(key)
        return "" if value is None else format(value * scale, form)

    return column


COLUMNS: dict[str, Column] = {
    "µs": _microseconds,
    "GB/s": _bandwidth,
    "of a copy": _copy_share,
    "time / base": _ratio,
    "tokens/s": _number("tokens_per_second", 1, ".1f"),
    "first token, ms": _number("first_token_s", 1e3, ".1f"),
    "peak, MB": _number("peak_bytes", 1e-6, ".1f"),
    "above the start, MB": _number("growth_bytes", 1e-6, ".1f"),
    "gated layers": _number("gated_layers", 1, "d"),
    "error": _number("error", 1, ".1e"),
}


def rows_of(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Column names and cells of results of some cases, without columns that are empty."""
    cases: dict[str, list[Result]] = {}
    for result in results:
        cases.setdefault(result.case, []).append(result)
    cells = []
    for case, of_case in cases.items():
        base = base_of(of_case)
        for result in of_case:
            name = f"{result.implementation} (base)" if result is base else result.implementation
            cells.append([case, name, *(f(result, base) for f in COLUMNS.values())])
    names = ["case", "implementation", *COLUMNS]
    used = [i for i in range(len(names)) if any(row[i] for row in cells)]
    return [names[i] for i in used], [[row[i] for i in used] for row in cells]


def summary_tables(results: Sequence[Result]) -> Iterable[Table]:
    """One table per operation, a section per case."""
    for op in grouped(results):
        names, cells = rows_of([r for r in results if r.op == op])
        table = Table(title=op, title_justify="left")
        for i, name in enumerate(names):
            table.add_column(name, justify="left" if i < 2 else "right", no_wrap=i > 1)
        for i, row in enumerate(cells):
            first = i == 0 or cells[i - 1][0] != row[0]
            last = i + 1 < len(cells) and cells[i + 1][0] != row[0]
            table.add_row(row[0] if first else "", *row[1:], end_section=last)
        yield table


def markdown(report: Report, picture: str | None = None) -> str:
    """A page: machine, every figure, and what was not measured."""
    lines = ["# Benchmark results", ""]
    lines += [f"- {name}: {value}" for name, value in report.machine.items()]
    if report.note:
        lines.append(f"- note: {report.note}")
    lines += ["", "Medians of interleaved rounds over rotated inputs; see `CONTRIBUTING.md`.", ""]
    if picture:
        lines += [f"![scaling and ratios]({picture})", ""]
    groups = grouped(report.results)
    for op in groups:
        names, cells = rows_of([r for r in report.results if r.op == op])
        lines += [f"## {op}", "", *_markdown_table(names, cells), ""]
    if report.absent:
        lines += ["## Not measured", ""]
        lines += [f"- {name}: {why}" for name, why in report.absent.items()]
        lines.append("")
    return "\n".join(lines)


def _markdown_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
