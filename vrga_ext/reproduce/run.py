"""``python -m vrga_ext reproduce``: measure, print, draw and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from vrga_ext.demo import terminal
from vrga_ext.demo.answers import load_demo
from vrga_ext.demo.models import MODEL_PATH
from vrga_ext.demo.run import load_checkpoint, one_thread
from vrga_ext.reproduce.report import print_report, write_report
from vrga_ext.reproduce.request import Request, check_request
from vrga_ext.reproduce.study import Study, conditions, study
from vrga_ext.reproduce.tasks import DemoTask, Task, check_demo_processor, draw_samples
from vrga_ext.reproduce.vqa import BoxTask

SEEDS = (1, 2, 3)  # of the drawn pictures


def reproduce(
    models: Sequence[str] = (),
    data: Path | None = None,
    output: Path | None = None,
    samples: int = 128,
    max_new_tokens: int = 256,
    console: Console | None = None,
) -> list[Study]:
    """Measure the paper's four findings.

    Parameters
    ----------
    models
        Without ``data``: folders of models saved by :mod:`tools.demo_model`, by default the
        shipped one. With ``data``: checkpoints of the hub or folders; only their safetensors are
        loaded, and no code.
    data
        Questions with boxes: :func:`vrga_ext.reproduce.questions.load_questions`.
    output
        Folder for the report (``README.md``) and its figures; without it they are not written.
    samples
        Pictures of each of the ``SEEDS``; with ``data`` the number of questions, from the first.
    max_new_tokens
        Longest answer of a checkpoint.
    console
        Where to print.

    Returns
    -------
    list of Study
        One per model.

    Raises
    ------
    ValueError
        An argument or a model does not fit, or the data is damaged.
    OSError
        A model or the data is missing.
    ImportError
        matplotlib is not installed for the figures, or pyarrow for parquet files.
    """
    return carry_out(check_request(models, data, output, samples, max_new_tokens), console)


def carry_out(request: Request, console: Console | None = None) -> list[Study]:
    """Do what :func:`reproduce` describes, with checked arguments."""
    console = console or terminal.console()
    names = _names(request.models)
    studies: list[Study] = []
    if request.data is not None:
        for name, where in names.items():
            model, processor = load_checkpoint(where)
            task: Task = BoxTask(processor, request.questions, request.max_new_tokens)
            studies.append(_studied(name, model, processor, task, console))
    else:
        loaded = {name: _load_trained(where) for name, where in names.items()}
        drawn = draw_samples(request.samples, SEEDS)
        with one_thread():
            for name, (model, processor) in loaded.items():
                studies.append(
                    _studied(name, model, processor, DemoTask(processor, drawn), console)
                )
    print_report(studies, console)
    if request.output is not None:
        from vrga_ext.reproduce.figures import draw_figures

        request.output.mkdir(parents=True, exist_ok=True)
        draw_figures(studies, request.output)
        commands = _commands(
            list(names.values()), request.data, request.samples, request.max_new_tokens
        )
        path = write_report(studies, request.output, commands)
        console.print(Text(f"report written to {terminal.shown(str(path), console)}"))
    return studies


def _names(models: Sequence[str]) -> dict[str, str]:
    """Name of each model: the end of its path or id, made unique; with its path or id."""
    names: dict[str, str] = {}
    for where in models or [str(MODEL_PATH)]:
        name = "shipped" if _is_shipped(where) else Path(where).name
        names[name if name not in names else f"{name} ({len(names) + 1})"] = where
    return names


def _is_shipped(where: str) -> bool:
    return Path(where).is_dir() and Path(where).samefile(MODEL_PATH)


def _load_trained(where: str) -> tuple[Any, Any]:
    model, processor = load_demo(Path(where))
    check_demo_processor(processor, where)
    return model, processor


def _studied(name: str, model: Any, processor: Any, task: Task, console: Console) -> Study:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(
            terminal.shown(name, console), total=conditions(task) * len(task.groups)
        )
        return study(
            name,
            model,
            processor,
            task,
            lambda what, count: progress.update(
                bar, description=terminal.shown(what, console), advance=count
            ),
        )


def _commands(
    models: Sequence[str], data: Path | None, samples: int, max_new_tokens: int
) -> list[str]:
    """The command lines, with the names of folders instead of their paths.

    The shipped model has a line of its own, without ``--model``.
    """
    options = f"--samples {samples} --output FOLDER"
    if data is not None:
        options = f"--data {data.name} --max-new-tokens {max_new_tokens} {options}"
    named = [
        f"--model {Path(where).name} "
        for where in models
        if data is not None or not _is_shipped(where)
    ]
    lines = [""] if len(named) < len(models) else []
    lines += ["".join(named)] if named else []
    return [f"python -m vrga_ext reproduce {line}{options}" for line in lines]
