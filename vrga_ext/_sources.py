"""Which sources the operations were compiled from, to notice that a clone's have changed since.

``setup.py`` runs this file by itself, so it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

SUFFIXES = {".cpp", ".cu", ".cuh", ".h"}


def source_hash(csrc: Path) -> str:
    """Hash of the C++ and CUDA files in a folder.

    Compiler flags do not count: they change the speed of the operations, not their results.

    Parameters
    ----------
    csrc
        The folder; files in folders below it count as well.

    Returns
    -------
    str
        Sixteen hexadecimal digits. They depend on the names and contents of the files, not on
        where the folder is, how its files are listed, or how their lines end.
    """
    digest = hashlib.sha256()
    files = (path for path in csrc.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    for name, path in sorted((path.relative_to(csrc).as_posix(), path) for path in files):
        text = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:16]


def clone() -> Path | None:
    """The clone of the repository that this file is in; None where it was installed as a wheel."""
    folder = Path(__file__).resolve().parents[1]
    parts = (folder / "csrc" / "torch" / "binding.cpp", folder / "setup.py")
    return folder if all(part.is_file() for part in parts) else None


def _folder_of(module: str) -> Path | None:
    spec = importlib.util.find_spec(f"vrga_ext.{module}")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def compiled_hash() -> str | None:
    """:func:`source_hash` at the time of compiling; None if unknown."""
    if _folder_of("_build_info") != _folder_of("_ops"):  # two installations, for two Pythons
        return None
    from vrga_ext import _build_info

    return getattr(_build_info, "source_hash", None)  # older builds have no hash


def difference() -> str | None:
    """Message that this clone's sources are not those of the operations, and what to do.

    None if they are, or if this is not a clone.
    """
    folder, built = clone(), compiled_hash()
    if folder is None:
        return None
    here = source_hash(folder / "csrc")
    if here == built:
        return None
    in_place = _folder_of("_ops") == Path(__file__).parent
    return (
        f"vrga_ext was compiled from other sources ({built or 'of an unknown state'}) than those "
        f"in {folder / 'csrc'} ({here}); its Python code and its operations may not match; "
        f"run `pip install {'-e ' * in_place}.` in {folder} again"
    )
