"""Where results go: looked at before the work starts, so that none is lost to a wrong path."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from vrga_ext.demo.pictures import DemoError
from vrga_ext.files import written_in_place


def check_file(argument: str, path: Path, suffixes: Collection[str] = ()) -> None:
    """Refuse a file that could not be written; neither it nor its folders are made yet.

    Raises
    ------
    DemoError
        Its name ends in none of ``suffixes``, if there are any; it is a folder; or nothing can be
        written there.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise DemoError(f"{argument}: wanted a name that ends in {', '.join(suffixes)}, got {path}")
    with _writing(argument, path):
        if path.is_dir():
            raise DemoError(f"{argument}: wanted a file, got {path}, which is a folder")
        if written_in_place(path):  # a pipe or a device, which opening would disturb
            if not os.access(path, os.W_OK):
                raise DemoError(f"{argument}: {path} cannot be written")
        elif path.exists():
            path.open("ab").close()
        else:
            _try_folder(Path(os.path.realpath(path)).parent)


def check_folder(argument: str, path: Path) -> None:
    """Refuse a folder in which nothing could be written; it is not made yet.

    Raises
    ------
    DemoError
        It is a file, or nothing can be written there.
    """
    with _writing(argument, path):
        _try_folder(path)


Named = Sequence[tuple[str, Path]]  # argument and path


def check_apart(outputs: Named, inputs: Named = (), *, folders: bool = False) -> None:
    """Refuse two outputs, or an output and an input, that are one file, or one of ``folders``.

    However they are spelled: through links, with other capitals (of files that are not there yet,
    since some file systems take them for one), or with a file where the other needs a folder.

    Raises
    ------
    DemoError
        Two of them are; names both.
    """
    for index, (argument, path) in enumerate(outputs):
        for other, taken in (*outputs[:index], *inputs):
            if _are_one(path, taken):
                raise DemoError(
                    f"{argument}: wanted another place than {other}, got {path}, which is the same"
                )
        for other, taken in outputs[:index]:
            for inner, outer in ((path, taken), (taken, path)):
                if not folders and _spelling(outer) in _spelling(inner).parents:
                    raise DemoError(
                        f"{argument}: wanted a place beside {other}, got {path} and {taken}, of "
                        "which one would be a folder for the other"
                    )


def _are_one(path: Path, other: Path) -> bool:
    path, other = (Path(os.path.realpath(one)) for one in (path, other))
    if path.exists() and other.exists():
        return path.samefile(other)
    return not path.exists() and not other.exists() and _spelling(path) == _spelling(other)


def _spelling(path: Path) -> Path:
    return Path(unicodedata.normalize("NFC", os.path.realpath(path)).casefold())


@contextmanager
def _writing(argument: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if isinstance(error, DemoError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise DemoError(f"{argument}: {path} cannot be written ({why})") from None


def _try_folder(folder: Path) -> None:
    """Write a nameless file in the folder, or where it would be made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    TemporaryFile(dir=there).close()
