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
    ``[x, y, width, height]`` of the region that answers the question, in pixels of the picture.
    What lies outside of it is cut off.

Other columns (``dataset_id``) are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from reprlib import repr as short
from typing import Any

from PIL import Image

from vrga_ext._arguments import Box, as_numbers, check_pixels
from vrga_ext.demo.pictures import DemoError, decode_picture, open_picture

_COLUMNS = ("image", "question", "answer", "bbox")
_SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class BoxedQuestion:
    """One question of the data.

    Attributes
    ----------
    source : Path or bytes
        The picture: its file, or the file's content.
    text : str
        The question.
    answers : tuple of str
        The human answers.
    box : (float, float, float, float)
        Left, top, right and bottom of the region that answers the question (pixels).
    size : (int, int)
        Width and height of the picture (pixels).
    """

    source: Path | bytes
    text: str
    answers: tuple[str, ...]
    box: Box
    size: tuple[int, int]

    def picture(self) -> Image.Image:
        """The picture as RGB.

        Raises
        ------
        DemoError
            Its file has been removed since the questions were read.
        """
        return _picture(self.source, self.text)


def load_questions(path: Path, count: int | None = None) -> list[BoxedQuestion]:
    """Read questions from a file, or from all such files of a folder in the order of their names.

    Their pictures are read as well, so that a missing one raises before the model starts.

    Parameters
    ----------
    path
        ``.parquet`` (needs pyarrow), ``.jsonl`` (an object a line) or ``.json`` (a list of
        objects); or a folder that holds files of one of these kinds, itself or in ``data/``.
    count
        Most questions to read; all without it.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder, or no file of these kinds in it.
    ImportError
        The file is parquet and pyarrow is not installed.
    ValueError
        A file is damaged; or a row lacks a column or has a wrong value there, its picture cannot be
        read, or its box is not in pixels of the picture. The message names the row.
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
        # A ValueError is of JSON, of UTF-8, or an integer of too many digits.
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data: {file.name} is not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(
            f"data: wanted a list of objects in {file.name}, got {type(rows).__name__}"
        )
    yield from rows


def _parquet_rows(file: Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"data: reading {file.name} needs pyarrow (pip install pyarrow); JSON lines with "
            "picture files need nothing more"
        ) from error
    try:
        with parquet.ParquetFile(file) as table:
            columns = [name for name in table.schema_arrow.names if name in (*_COLUMNS, "answers")]
            for batch in table.iter_batches(batch_size=16, columns=columns):
                yield from batch.to_pylist()
    except Exception as error:  # ArrowException, and what values beyond Python's lead to
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
        raise ValueError(f"data: image: wanted a file name or bytes in {where}, got {short(image)}")
    if not _is_text(text):
        raise ValueError(f"data: question: wanted a string in {where}, got {short(text)}")
    if not (isinstance(answers, list) and answers and all(map(_is_text, answers))):
        raise ValueError(f"data: answer: wanted strings in {where}, got {short(answers)}")
    layout = f"data: bbox: wanted [x, y, width, height] in {where}"
    try:
        x, y, width, height = sides = as_numbers("bbox", box, "(x, y, width, height)")
    except ValueError:
        raise ValueError(f"{layout}, got {short(box)}") from None
    if not (width > 0 and height > 0):
        raise ValueError(f"{layout} with a width and height above 0, got {sides}")
    corners = (x, y, x + width, y + height)
    try:
        size = _picture(source, text).size
        check_pixels("bbox", [corners], size, "[x, y, x + width, y + height]")
    except ValueError as error:
        raise DemoError(f"data: {error}, in {where}") from None
    return BoxedQuestion(source, text.strip(), tuple(answers), corners, size)


def _picture(source: Path | bytes, text: str) -> Image.Image:
    if isinstance(source, Path):
        return open_picture(source)
    return decode_picture(BytesIO(source), f"the picture for {text!r}")


def _is_text(value: Any) -> bool:
    """Whether it is a string with a visible character, without half of a surrogate pair."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
