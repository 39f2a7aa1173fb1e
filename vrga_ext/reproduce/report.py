"""Report of the findings: Markdown, and tables on a terminal."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

import vrga_ext
from vrga_ext.demo import terminal
from vrga_ext.files import replacing
from vrga_ext.reproduce.findings import (
    COLLAPSE,
    FINDINGS,
    HARDLY,
    LIKELY,
    SURE,
    Claim,
    Table,
    claims,
    tables,
)
from vrga_ext.reproduce.request import FIGURES, REPORT
from vrga_ext.reproduce.study import Study

_MARKS = {True: "✓", False: "✗", None: "?"}
_RULES = (
    "✓ the statement holds; ✗ it does not, or the questions are too few to tell; ? it cannot be "
    f"tested here. A difference counts from {SURE:.0f} standard errors on (paired, on the same "
    f"questions); a gain is denied below {LIKELY:.0f}, if VRGA is {SURE:.0f} above; a collapse "
    f"loses at least {COLLAPSE:.0%} of the accuracy, and a loss below {100 * HARDLY:.0f} points "
    "hardly matters. ± is one standard error; "
    "z = (better - worse) / sqrt(better + worse), McNemar's."
)
_NOTES = (
    "The picture is hidden while the answer is written; the prompt is read with it. RRAR is the "
    "attention on the true region's image tokens over the mean of all image tokens. Visual heads "
    "are those that VRGA finds by EFR and R at the question, for each question anew. With VRGA, "
    "RRAR is that of the reweighted attention, which a boost of the right tokens raises by itself; "
    "the accuracy tells whether it helped. Where a picture or a model has too few tokens or heads "
    "left for a control that is to have as many, their mean numbers stand beside it.",
)


def print_report(studies: Sequence[Study], console: Console) -> None:
    """Print every table."""
    for table in (*_claim_tables(studies), *tables(studies)):
        header, rows = table.header, table.rows
        title, note, *cells = (
            Text(terminal.shown(text, console))
            for text in (table.title, table.note, *header, *(cell for row in rows for cell in row))
        )
        drawn = RichTable(title=title, caption=note, title_style="bold")
        for name in cells[: len(header)]:
            drawn.add_column(name)
        for first in range(len(header), len(cells), len(header)):
            drawn.add_row(*cells[first : first + len(header)])
        console.print(drawn)
    console.print(Text(terminal.shown(_RULES, console)))


def write_report(studies: Sequence[Study], folder: Path, commands: Sequence[str]) -> Path:
    """Write ``README.md`` beside the figures; returns its path."""
    task = studies[0].task
    lines = [
        "# The paper's four findings, measured",
        "",
        *_summary(studies),
        "",
        f"{task.caveat}",
        "",
        f"Questions: {task.about}, the same for every condition. Thresholds of VRGA: "
        f"{_thresholds(studies[0])}.",
        "",
        _RULES,
        "",
        *_NOTES,
    ]
    found = tables(studies)
    per_finding: list[list[Table]] = [[], found[:1], found[1:2], found[2:]]
    for index, table in enumerate(_claim_tables(studies)):
        lines += ["", f"## {index + 1}. {FINDINGS[index]}", "", *_markdown(table)]
        lines += ["", f"![{FINDINGS[index]}]({FIGURES[index]})"]
        for more in per_finding[index]:
            lines += ["", f"**{more.title}.** {more.note}".strip(), "", *_markdown(more)]
    lines += ["", "## Where it was measured", "", *(f"    {command}" for command in commands)]
    lines += ["", _provenance(), ""]
    path = folder / REPORT
    with replacing(path) as file:
        file.write_text("\n".join(lines), encoding="utf-8")
    return path


def _summary(studies: Sequence[Study]) -> list[str]:
    lines = []
    for study in studies:
        tested = [claim for claim in claims(study) if claim.holds is not None]
        failed = [claim for claim in tested if not claim.holds]
        text = (
            f"- **{study.name}** ({study.parameters / 1e6:,.2f} M parameters): "
            f"{len(tested) - len(failed)} of {len(tested)} statements hold"
        )
        if failed:
            text += "; not: " + "; ".join(f"{claim.text} ({claim.figures})" for claim in failed)
        lines.append(text + ".")
    return lines


def _claim_tables(studies: Sequence[Study]) -> list[Table]:
    """A table for each finding: a line per statement, a column per model."""
    columns = [claims(study) for study in studies]
    found = []
    for index, title in enumerate(FINDINGS):
        rows = [
            [claims_of[0].text, *(_verdict(claim) for claim in claims_of)]
            for claims_of in zip(*columns, strict=True)
            if claims_of[0].finding == index
        ]
        header = ["statement", *(study.name for study in studies)]
        found.append(Table(f"{index + 1}. {title}", header, rows))
    return found


def _verdict(claim: Claim) -> str:
    return f"{_MARKS[claim.holds]} {claim.figures}"


def _markdown(table: Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(table.header), line(["---"] * len(table.header)), *map(line, table.rows)]


def _thresholds(study: Study) -> str:
    config = study.task.config
    return (
        f"gamma {config.gamma:g}, {config.gate} gate, EFR at or below its percentile "
        f"{config.efr_percentile:g}, R at or above its percentile {config.ratio_percentile:g}"
    )


def _provenance() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    try:
        own = version("vrga_ext")
    except PackageNotFoundError:
        own = "not installed"
    return (
        f"vrga_ext {own} ({_commit()}), {packages}, "
        f"Python {platform.python_version()}, {platform.machine()}."
    )


def _commit() -> str:
    """The commit of this checkout; ``"commit unknown"`` if it is none."""
    root = Path(vrga_ext.__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True)
        return os.fsdecode(done.stdout).strip() if done.returncode == 0 else ""

    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or Path(top) != root:
            return "commit unknown"
        changed = ", with local changes" if git("status", "--porcelain", "vrga_ext") else ""
        return f"commit {git('rev-parse', '--short', 'HEAD')}{changed}"
    except OSError:
        return "commit unknown, no git"
