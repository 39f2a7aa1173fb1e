"""``python -m vrga_ext``: facts about the build, the demo, and the paper's findings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vrga_ext.demo.terminal import never_fail
from vrga_ext.viz.texts import escaped


class _Commands(TyperGroup):
    """Commands that print on any terminal."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        never_fail()
        return super().main(*args, **kwargs)


app = typer.Typer(
    cls=_Commands,
    help="Visual region-guided attention (VRGA) for multimodal language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def _errors_in_one_line(command: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        message = escaped(" ".join(str(error).split()))
        typer.echo(f"vrga_ext {command}: {message}", err=True)
        raise typer.Exit(2) from error


def _print_version(wanted: bool) -> None:
    if wanted:
        with _errors_in_one_line("--version"):
            import vrga_ext

            typer.echo(f"vrga_ext {vrga_ext.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Visual region-guided attention (VRGA) for multimodal language models."""


@app.command()
def info() -> None:
    """Show what was compiled and what of it runs here."""
    with _errors_in_one_line("info"):
        from vrga_ext.build_facts import build_info

        typer.echo(build_info())


@app.command()
def demo(
    image: Annotated[
        Path | None, typer.Option(help="A picture of your own; needs --question.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about the picture.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A real checkpoint from the hub, or a folder with one.")
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(help="Where to look, in place of what VRGA finds: x0,y0,x1,y1 in pixels."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where to write the figure.")] = Path(
        "vrga_demo.png"
    ),
    html: Annotated[
        Path | None, typer.Option(help="Where to write a page of the answer, token by token.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Held-out pictures to measure on.")] = 64,
) -> None:
    """Answer a question about a picture with and without VRGA, and draw what changes.

    Without options: the model and the picture shipped with the package, no download.
    """
    with _errors_in_one_line("demo"):
        from vrga_ext.demo.request import check_request

        request = check_request(output, samples, image, question, model, html, box=box)
        from vrga_ext.demo.run import carry_out  # now: it imports torch and transformers

        carry_out(request)


@app.command()
def reproduce(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder saved by `python -m tools.demo_model`, or with --data a checkpoint. "
            "Repeatable."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Questions with boxes, as jrzhang/TextVQA_GT_bbox has them."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for a report in Markdown and its figures.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Pictures for each of three seeds, or questions of --data.")
    ] = 128,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer of a checkpoint.")
    ] = 256,
) -> None:
    """Measure the paper's four findings, with errors, controls and a verdict on each statement.

    Without options: the model shipped with the package, no download.
    """
    with _errors_in_one_line("reproduce"):
        from vrga_ext.reproduce.request import check_request

        request = check_request(model or (), data, output, samples, max_new_tokens)
        from vrga_ext.reproduce.run import carry_out  # now: it imports torch and transformers

        carry_out(request)
