"""Questions with answers and boxes from files, in the layout of the dataset TextVQA_GT_bbox.

``jrzhang/TextVQA_GT_bbox`` on the Hugging Face hub holds one question a row:

``image``
    The picture: in parquet ``{"bytes": ..., "path": ...}``, in JSON the name of a picture file,
    relative to the JSON file.
``question``
    A string.
``answer``
    The human answers, ten strings; ``answers`` is taken as well, and a single string.
``bbox``
    ``[x, y, width, height]`` of the region that answers the question, in pixels.

Other columns (``dataset_id``) are not read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vrga_ext.demo.pictures import decode_picture, open_picture
from vrga_ext.reproduce.interventions import Box

_COLUMNS = ("image", "question", "answer", "bbox")
_SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class BoxedQuestion:
    """One row of the data."""

    source: Path | bytes  # the picture, a file or its content
    text: str
    answers: tuple[str, ...]
    box: Box  # left, top, right, bottom in pixels

    def picture(self) -> Image.Image:
        """The picture as RGB.

        Raises
        ------
        DemoError
            It is missing, or not a picture that can be read.
        """
        if isinstance(self.source, Path):
            return open_picture(self.source)
        return decode_picture(BytesIO(self.source), f"the picture for {self.text!r}")


def load_questions(path: Path, count: int | None = None) -> list[BoxedQuestion]:
    """Read questions from a file, or from all such files of a folder in the order of their names.

    Parameters
    ----------
    path
        ``.parquet`` (needs pyarrow), ``.jsonl`` (an object a line) or ``.json`` (a list of
        objects); or a folder that holds files of one of these kinds, itself or in ``data/``.
    count
        Read at most so many.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder, or nothing of that kind in it.
    ImportError
        A parquet file, and pyarrow is not installed.
    ValueError
        A row lacks a column or holds something else there; says which row.
    """
    found: list[BoxedQuestion] = []
    for file in _files(path):
        for index, row in enumerate(_rows(file)):
            if count is not None and len(found) == count:
                return found
            found.append(_question(row, file, f"{file.name}, row {index + 1}"))
    if not found:
        raise ValueError(f"data: wanted at least one question, got none in {path}")
    return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"data: wanted a file of {', '.join(_SUFFIXES)}, got {path}")
        return [path]
    if not path.exists():
        raise FileNotFoundError(
            f"data: there is no file or folder {path}; the questions of the paper come with: "
            f"hf download --repo-type dataset jrzhang/TextVQA_GT_bbox --local-dir {path}"
        )
    for suffix in _SUFFIXES:
        for folder in (path, path / "data"):
            files = sorted(file for file in folder.glob("*") if file.suffix.lower() == suffix)
            if files:
                return files
    raise FileNotFoundError(f"data: wanted files of {', '.join(_SUFFIXES)} in {path}, got none")


def _rows(file: Path) -> Iterator[Any]:
    if file.suffix.lower() == ".parquet":
        yield from _parquet_rows(file)
        return
    with file.open(encoding="utf-8-sig") as lines:
        try:
            if file.suffix.lower() == ".jsonl":
                yield from (json.loads(line) for line in lines if line.strip())
                return
            rows = json.load(lines)
        except ValueError as error:  # of JSON, of UTF-8, or an integer of too many digits
            raise ValueError(f"data: {file.name} is not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(
            f"data: wanted a list of objects in {file.name}, got {type(rows).__name__}"
        )
    yield from rows


def _parquet_rows(file: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(
            f"data: reading {file.name} needs pyarrow (pip install pyarrow); JSON lines with "
            "picture files need nothing more"
        ) from error
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(f"data: {file.name} cannot be read as parquet ({error})") from error


def _question(row: Any, file: Path, where: str) -> BoxedQuestion:
    if not isinstance(row, dict):
        raise ValueError(f"data: wanted an object in {where}, got {type(row).__name__}")
    row = {"answer": row.get("answers")} | row
    missing = [name for name in _COLUMNS if row.get(name) is None]
    if missing:
        raise ValueError(
            f"data: wanted the columns {', '.join(_COLUMNS)} in {where}, got no "
            f"{', '.join(missing)}"
        )
    image, text, answers, box = (row[name] for name in _COLUMNS)
    answers = [answers] if isinstance(answers, str) else answers
    source: Any = image
    if isinstance(image, dict):
        source = image.get("bytes") or image.get("path")
    if isinstance(source, str) and source:
        source = file.parent / source
    if not isinstance(source, bytes | Path):
        raise ValueError(f"data: image: wanted a file name or bytes in {where}, got {image!r}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"data: question: wanted a string in {where}, got {text!r}")
    if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
        raise ValueError(f"data: answer: wanted strings in {where}, got {answers!r}")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        raise ValueError(f"data: bbox: wanted [x, y, width, height] in {where}, got {box!r}")
    x, y, width, height = box
    if not (width > 0 and height > 0):
        raise ValueError(f"data: bbox: wanted a width and height above 0 in {where}, got {box}")
    return BoxedQuestion(source, text.strip(), tuple(answers), (x, y, x + width, y + height))


def _is_finite(side: Any) -> bool:
    number = isinstance(side, int | float) and not isinstance(side, bool)
    return number and abs(side) <= sys.float_info.max  # an integer may be beyond every float
