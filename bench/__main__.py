"""``python -m bench report|join``: pages from results, and one file of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bench.plots import draw
from bench.report import markdown
from bench.results import Report, compact
from bench.results import join as join_results
from vrga_ext.demo.outputs import check_apart
from vrga_ext.demo.terminal import never_fail
from vrga_ext.files import replacing

app = typer.Typer(
    help="Results of `pytest bench --benchmark-only --benchmark-json=RESULT.json`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False)]
RESULTS = Path(__file__).parent / "results"


@contextmanager
def _one_line() -> Iterator[None]:
    """What is wrong with a file in one line, and exit status 2."""
    never_fail()
    try:
        yield
    except (OSError, ValueError) as error:
        typer.echo(f"bench: {error}", err=True)
        raise typer.Exit(2) from error


@app.command()
@_one_line()
def report(
    result: File, out: Annotated[Path, typer.Option(help="Folder to write to.")] = RESULTS
) -> None:
    """Turn a JSON file into a Markdown page and a figure of the same name."""
    picture, page = out / f"{result.stem}.png", out / f"{result.stem}.md"
    check_apart([("picture", picture), ("page", page)], [("RESULT", result)])
    loaded = Report.load(result)
    out.mkdir(parents=True, exist_ok=True)
    drawn = draw(loaded, picture)
    with replacing(page) as file:
        file.write_text(markdown(loaded, picture.name if drawn else None), encoding="utf-8")
    typer.echo(f"{page}\n{picture}" if drawn else str(page))


@app.command()
@_one_line()
def join(
    parts: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    note: Annotated[str, typer.Option(help="What the machine does not say of itself.")] = "",
) -> None:
    """Join files of one machine, a suite that was run in parts, into a compact one.

    The file may be one of them.
    """
    joined = join_results(parts, note)
    with replacing(out) as file:
        file.write_text(compact(joined), encoding="utf-8")
    typer.echo(f"{len(joined['benchmarks'])} results in {out}")


if __name__ == "__main__":
    app()
