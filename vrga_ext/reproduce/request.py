"""Arguments of the study, checked before the slow imports: torch, transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vrga_ext.demo.models import check_checkpoint, check_folder_of_model
from vrga_ext.demo.outputs import check_apart, check_file, check_folder
from vrga_ext.reproduce.questions import BoxedQuestion, load_questions

REPORT = "README.md"
FIGURES = ("heads.png", "masking.png", "length.png", "recovery.png")  # one of each finding


@dataclass(frozen=True)
class Request:
    """Checked arguments of :func:`vrga_ext.reproduce.run.reproduce`.

    Attributes
    ----------
    models : tuple of str
        Folders or ids of the models; empty for the shipped one.
    data : Path, optional
        File or folder of the questions; None for those about drawn pictures.
    questions : list of BoxedQuestion
        What was read from ``data``.
    output : Path, optional
        Folder for the report.
    samples : int
        Pictures of each seed; with ``data`` the most questions that are read.
    max_new_tokens : int
        Longest answer of a checkpoint (tokens).
    """

    models: tuple[str, ...]
    data: Path | None
    questions: list[BoxedQuestion]
    output: Path | None
    samples: int
    max_new_tokens: int


def check_request(
    models: Sequence[str] = (),
    data: Path | None = None,
    output: Path | None = None,
    samples: int = 128,
    max_new_tokens: int = 256,
) -> Request:
    """Read the questions and check the other arguments.

    Raises
    ------
    ValueError
        An argument does not fit, or the data is damaged.
    OSError
        A model or the data is missing.
    ImportError
        matplotlib is not installed for the figures, or pyarrow for parquet files.
    """
    if output is not None and find_spec("matplotlib") is None:
        raise ImportError("the report draws with matplotlib: pip install 'vrga_ext[viz]'")
    for name, number in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if number < 1:
            raise ValueError(f"{name}: wanted at least 1, got {number}")
    if data is not None and not models:
        raise ValueError("model: wanted a checkpoint to answer the questions of --data, got none")
    if output is not None:
        check_folder("output", output)
    for where in models:
        _check_model(where, data is not None)
    questions = [] if data is None else load_questions(data, samples)
    if output is not None:
        _check_output(output, models, data, questions)
    return Request(tuple(models), data, questions, output, samples, max_new_tokens)


def _check_model(where: str, asked_questions: bool) -> None:
    if asked_questions:
        check_checkpoint("model", where)
        return
    try:
        check_folder_of_model("model", where)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; a checkpoint of the hub needs questions: --data"
        ) from None


def _check_output(
    output: Path, models: Sequence[str], data: Path | None, questions: Sequence[BoxedQuestion]
) -> None:
    """The report must not replace a file or folder that is read."""
    folders = [("model", Path(where)) for where in models]
    files: list[tuple[str, Path]] = []
    if data is not None:
        folders += [("data", data), ("data", data / "data")]
        files += [("data", data)]
    files += [("data", asked.source) for asked in questions if isinstance(asked.source, Path)]
    there = [(name, path) for name, path in folders if path.is_dir()]
    check_apart([("output", output)], there, folders=True)
    for name in (REPORT, *FIGURES):
        check_file("output", output / name)
        check_apart([("output", output / name)], files)
