"""Write a file beside its place, and move it there once it is whole."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write that replaces ``path`` when the block ends, and is removed if it fails.

    The result is as after ``open(path, "w")``: a symbolic link is followed, a new file has the mode
    of the umask, and an existing one keeps mode and owner. But the file is a new one, so that hard
    links to the old one keep its content. Pipes and devices are written directly, and so is a file
    in a folder where it cannot be replaced.

    Parameters
    ----------
    path
        Of the file.

    Yields
    ------
    Path
        File to write to, empty, in the same folder.

    Raises
    ------
    OSError
        ``path`` cannot be written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     kept = Path(folder, "kept.txt")
    ...     _ = kept.write_text("old")
    ...     try:
    ...         with replacing(kept) as file:
    ...             _ = file.write_text("half of the n")
    ...             raise KeyboardInterrupt
    ...     except KeyboardInterrupt:
    ...         print(kept.read_text(), len(os.listdir(folder)))
    old 1
    """
    target = _followed(Path(path))
    if not _is_replaced(target):
        yield target
        return
    before = target.stat() if target.exists() else None
    if before is not None:
        os.close(os.open(target, os.O_WRONLY))  # raises without write permission, as open() does
    part = target.parent / f".{token_hex(8)}.part"
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except PermissionError:
        if before is None:
            raise
        yield target
        return
    try:
        if before is not None:
            with suppress(PermissionError):  # it was another owner's
                os.chown(part, before.st_uid, before.st_gid)
            with suppress(PermissionError):
                part.chmod(stat.S_IMODE(before.st_mode))
        yield part
        try:
            part.replace(target)
        except OSError:
            if before is None:
                raise
            shutil.copyfile(part, target)  # a mount point, or in a folder with the sticky bit
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file with :func:`replacing`.

    Raises
    ------
    OSError
        The file cannot be written; an existing one stays as it was.
    """
    try:
        with replacing(path) as file:
            file.write_bytes(content)
    except OSError as error:
        raise OSError(f"path: wanted a file to write to, got {path} ({error})") from error


def written_in_place(path: Path) -> bool:
    """Whether ``path`` is a pipe, a device or an open file, which must not be replaced."""
    return not _is_replaced(_followed(path))


def _is_replaced(target: Path) -> bool:
    if target.is_relative_to("/proc"):
        return False
    return target.is_file() or not target.exists()


def _followed(path: Path) -> Path:
    """Target of symbolic links; those in /proc lead to open files, and are not followed."""
    for _ in range(40):  # as many as Linux follows
        path = Path(os.path.realpath(path.parent), path.name)
        if path.is_relative_to("/proc") or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
