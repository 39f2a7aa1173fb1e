"""Where results go: looked at before the work starts, so that none is lost to a wrong path."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from vrga_ext.demo.pictures import DemoError


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
        if path.exists():
            path.open("ab").close()
        else:
            _try_folder(path.parent)


def check_folder(argument: str, path: Path) -> None:
    """Refuse a folder in which nothing could be written; it is not made yet.

    Raises
    ------
    DemoError
        It is a file, or nothing can be written there.
    """
    with _writing(argument, path):
        _try_folder(path)


@contextmanager
def _writing(argument: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DemoError(f"{argument}: {path} cannot be written ({error.strerror})") from None


def _try_folder(folder: Path) -> None:
    """Write a nameless file in the folder, or where it would be made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    TemporaryFile(dir=there).close()
