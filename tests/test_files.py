"""Files appear whole or not at all, and otherwise as ``open`` leaves them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from vrga_ext.files import replacing


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    return path


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as file:
        file.write_text(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, OSError, MemoryError])
def test_what_is_cut_short_leaves_nothing(kept, interruption):
    for path in (kept, kept.parent / "new.txt"):
        with pytest.raises(interruption), replacing(path) as file:  # noqa: PT012
            file.write_text("half")
            raise interruption
    assert kept.read_text() == "old"
    assert list(kept.parent.iterdir()) == [kept]


def test_the_old_file_stands_until_the_new_one_is_whole(kept):
    with replacing(kept) as file:
        file.write_text("half")
        assert kept.read_text() == "old"
    assert kept.read_text() == "half"
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_those_of_open(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "ours")
        (tmp_path / "plain").write_text("new")
        assert mode(tmp_path / "ours") == mode(tmp_path / "plain") == 0o666 & ~umask
        (tmp_path / "ours").chmod(0o640)
        write(tmp_path / "ours", "newer")
        assert mode(tmp_path / "ours") == 0o640
    finally:
        os.umask(before)


def test_links_are_followed(kept, tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "link").symlink_to("kept.txt")
    (inner / "twice").symlink_to("../link")
    (tmp_path / "dangling").symlink_to("inner/made.txt")
    (tmp_path / "folder").symlink_to(inner)
    write(inner / "twice")
    write(tmp_path / "dangling")
    write(tmp_path / "folder" / ".." / "up.txt")
    assert kept.read_text() == (inner / "made.txt").read_text() == "new"
    assert (tmp_path / "up.txt").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    assert (inner / "twice").is_symlink()
    monkeypatch.chdir(inner)
    write(Path("twice"), "from here")
    assert kept.read_text() == "from here"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write(tmp_path / "loop")


def test_what_open_refuses_is_refused(kept):
    for path, error in [
        (kept.parent, IsADirectoryError),
        (kept.parent / "missing" / "new.txt", FileNotFoundError),
        (kept / "new.txt", NotADirectoryError),
        (Path("/proc/nowhere"), FileNotFoundError),
    ]:
        with pytest.raises(error):
            write(path)
    assert list(kept.parent.iterdir()) == [kept]


AS_NOBODY = """
import os, sys
from pathlib import Path
from vrga_ext.files import replacing
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    with replacing(Path(sys.argv[1])) as file:
        file.write_text("new")
except PermissionError as error:
    sys.exit(f"refused {error.filename}")
"""


@pytest.mark.parametrize(
    ("of_file", "of_folder", "refused"),
    [(0o444, 0o777, True), (0o666, 0o755, False), (0o666, 0o1777, False), (0o666, 0o777, False)],
)
def test_other_peoples_files_and_folders(of_file, of_folder, refused):
    """A file that may not be written stays; one in a folder that may not is written in place."""
    if os.getuid() != 0:
        pytest.skip("needs root, to make files of another user")
    folder = Path(mkdtemp())  # tmp_path lies in a folder that is closed to others
    file = folder / "file.txt"
    file.write_text("old")
    file.chmod(of_file)
    folder.chmod(of_folder)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, file], capture_output=True, text=True, cwd=Path.cwd()
    )
    assert done.returncode == refused, done.stderr
    assert ("refused" in done.stderr) == refused
    assert file.read_text() == ("old" if refused else "new")
    assert list(folder.iterdir()) == [file]
    rmtree(folder)


@pytest.mark.parametrize("way", ["pipe", "file"])
def test_standard_output_is_a_file_too(tmp_path, way):
    code = (
        "from vrga_ext.files import replacing\n"
        "print('first', flush=True)\n"
        "with replacing('/dev/stdout') as file:\n"
        "    with file.open('a') as opened: opened.write('second\\n')\n"
        "print('third', flush=True)\n"
    )
    command = [sys.executable, "-c", code]
    if way == "pipe":
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        with (tmp_path / "shown").open("a") as output:
            subprocess.run(command, stdout=output, check=True)
        shown = (tmp_path / "shown").read_text()
        assert list(tmp_path.iterdir()) == [tmp_path / "shown"]
    assert shown == "first\nsecond\nthird\n"


def test_devices_are_written_to():
    with replacing("/dev/null") as file:
        file.write_text("gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
