"""Checks of output paths before the work starts, so that no result is lost to a wrong path."""

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
    """Check that a file can be written, without making it or its folders.

    Raises
    ------
    DemoError
        Its name has none of the given ``suffixes``, it is a folder, or it cannot be written.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise DemoError(f"{argument}: wanted a name that ends in {', '.join(suffixes)}, got {path}")
    with _writing(argument, path):
        if path.is_dir():
            raise DemoError(f"{argument}: wanted a file, got {path}, which is a folder")
        if written_in_place(path):  # opening would disturb a pipe or a device
            if not os.access(path, os.W_OK):
                raise DemoError(f"{argument}: {path} cannot be written")
        elif path.exists():
            path.open("ab").close()
        else:
            _try_folder(Path(os.path.realpath(path)).parent)


def check_folder(argument: str, path: Path) -> None:
    """Check that files can be written in a folder, without making it.

    Raises
    ------
    DemoError
        It is a file, or files cannot be written there.
    """
    with _writing(argument, path):
        _try_folder(path)


Named = Sequence[tuple[str, Path]]  # argument and path


def check_apart(outputs: Named, inputs: Named = (), *, folders: bool = False) -> None:
    """Check that outputs differ from each other and from inputs.

    Two spellings may be the same file: through links, or with other capitals on some file systems
    (so files that do not exist yet are compared without case). A file where another output needs a
    folder raises as well.

    Parameters
    ----------
    outputs, inputs
        Argument and path of each.
    folders
        The paths are folders, which may lie within each other.

    Raises
    ------
    DemoError
        Two of them are the same; the message names both.
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
                        f"{argument}: wanted a place beside {other}, got {path} and {taken}; "
                        "one of them would have to be a folder with the other in it"
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
    """Write a temporary file in the folder, or in the one where it would be made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    TemporaryFile(dir=there).close()
