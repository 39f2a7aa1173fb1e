"""The commands' ends: what they print, and errors in one line instead of a traceback."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import vrga_ext
from vrga_ext.cli import app

# For commands in another folder: the package that is tested, not one that is installed.
HERE = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
# An interpreter in which the compiled operations cannot be found.
WITHOUT_OPERATIONS = (
    "import sys; sys.modules['vrga_ext._ops'] = None\nfrom vrga_ext.cli import app; app(['info'])"
)


def test_info_says_what_was_built():
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    assert result.output == f"{vrga_ext.build_info()}\n"


@pytest.mark.parametrize(
    ("arguments", "simd", "message"),
    [
        (["-m", "vrga_ext", "info"], "sse9", "VRGA_EXT_SIMD: wanted one of generic"),
        (["-c", WITHOUT_OPERATIONS], "", "vrga_ext has no compiled operations here"),
    ],
)
def test_info_says_in_one_line_why_it_cannot(arguments, simd, message):
    result = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"VRGA_EXT_SIMD": simd},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"vrga_ext info: {message}")


def test_version_is_printed():
    for options in (["--version"], ["--version", "demo", "--samples", "-3"]):
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 0
        assert result.output == f"vrga_ext {vrga_ext.__version__}\n"


def test_version_of_a_clone_that_was_never_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delattr(vrga_ext, "__version__", raising=False)
    monkeypatch.setattr(vrga_ext, "version", missing)
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 2
    assert "vrga_ext --version: No package metadata" in result.stderr


# Runs commands one after the other in one interpreter, and says what each of them imported.
QUICK = """
import sys
from vrga_ext.cli import app

for line in sys.stdin.read().splitlines():
    before = set(sys.modules)
    try:
        app(line.split("|"), standalone_mode=True)
    except SystemExit as error:
        code = error.code
    slow = {"torch", "transformers"} & set(sys.modules)
    print(f"{code} {sorted(slow)}", file=sys.stderr, flush=True)
    assert not slow, line
"""


def test_what_cannot_be_done_is_said_before_torch_is_imported(tmp_path):
    picture = tmp_path / "own.png"
    Image.new("RGB", (40, 40)).save(picture)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    row = {"image": "own.png", "question": "what?", "answer": "a", "bbox": [0.1, 0.1, 0.5, 0.5]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    lines = {
        "--help": "Usage",
        "--version": "",
        "demo|--help": "Usage",
        "demo|--samples|-1": "samples",
        "demo|--samples|many": "samples",
        "demo|--output|x.xyz": "output: wanted a name that ends in .",
        "demo|--output|text.png/x.png": "output: text.png/x.png cannot be written",
        "demo|--html|empty": "html: wanted a file, got empty, which is a folder",
        "demo|--output|x.svg|--html|x.svg": "html: wanted another place than output",
        "demo|--image|none.png|--question|what?": "image: there is no file none.png",
        "demo|--image|text.png|--question|what?": "text.png is not a picture",
        "demo|--image|own.png": "question: wanted one to go with the picture",
        "demo|--image|own.png|--question|a cat?": "does not know 'a', 'cat'",
        "demo|--image|own.png|--question| ": "question: wanted a question, got nothing",
        "demo|--image|own.png|--question|?|--output|own.png": "output: wanted another place",
        "demo|--box|1,2,3": "box: wanted x0,y0,x1,y1 in pixels, got '1,2,3'",
        "demo|--box|9,9,400,20": "box: wanted boxes inside a picture of 168 x 168",
        "demo|--model|some/model": "image: wanted a picture of yours",
        "demo|--model|no/such/folder|--image|own.png|--question|?": "model: wanted a folder",
        "demo|--model|empty|--image|own.png|--question|?": "model: wanted a folder",
        "reproduce|--help": "Usage",
        "reproduce|--samples|0": "samples",
        "reproduce|--max-new-tokens|0": "max-new-tokens",
        "reproduce|--model|nowhere": "wanted a folder of a saved model, got nowhere; a checkpoint",
        "reproduce|--output|text.png": "output: text.png cannot be written",
        "reproduce|--data|q.jsonl": "model: wanted a checkpoint to answer the questions",
        "reproduce|--data|none|--model|a/b": "data: there is no file or folder none",
        "reproduce|--data|q.jsonl|--model|a/b": "shares of its sides",
        "reproduce|--model|empty|--data|q.jsonl": "wanted a folder of a saved model, got empty",
        "nothing": "No such command",
    }
    done = subprocess.run(
        [sys.executable, "-c", QUICK], input="\n".join(lines), capture_output=True, text=True,
        cwd=tmp_path, env=HERE | {"COLUMNS": "300"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = re.split(r"^(\d) \[\]\n", done.stderr, flags=re.M)
    codes = said[1::2]
    for line, code, text in zip(lines, codes, said[::2], strict=False):
        assert (code == "0") == (line.endswith("--help") or line == "--version"), (line, text)
        if code != "0":
            assert lines[line] in text, (line, text)
            if "vrga_ext " in text:
                assert len(text.splitlines()) == 1
    assert len(codes) == len(lines)
    kept = {"own.png", "text.png", "empty", "q.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_training_is_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from tools.demo_model import __main__ as train\n"
        "for sys.argv in (['t', '--help'], ['t', '--threads', '0'], ['t', '--start', 'none'],\n"
        "                 ['t', '--output', 'a', '--first', 'b/../a']):\n"
        "    try: train.main()\n"
        "    except SystemExit as error: print(error.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=HERE
    )
    assert re.findall(r"^\d (?:True|False)$", done.stdout, re.M) == ["0 False"] + ["2 False"] * 3
    assert "start: wanted a folder of a saved model, got none" in done.stderr
    assert "first: wanted another place than output, got b/../a, which is the same" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_demo_on_a_terminal_without_unicode(tmp_path, encoding):
    """The answer to the demo's question is cut at its front, by a sign that is not there."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:PIL", "-m", "vrga_ext", "demo", "--samples", "2",
         "--output", "é.png", "--html", "page.html"],
        capture_output=True, cwd=tmp_path, env=HERE | {"LC_ALL": "C", "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"without VRGA  ... so solid square yellow\n" in done.stdout
    assert b"with VRGA  ... so solid square purple\n" in done.stdout
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_commands_on_a_terminal_without_unicode(tmp_path, encoding):
    name = "\udcffé…✓.png"
    for arguments in (
        ["--help"], ["info"], ["demo", "--help"], ["reproduce", "--help"], ["nothing"],
        ["demo", "--image", name, "--question", "what?"], ["demo", "--question", name],
    ):  # fmt: skip
        result = CliRunner(charset=encoding).invoke(app, arguments)
        assert not isinstance(result.exception, UnicodeError), (arguments, result.exception)
        assert result.exit_code in (0, 2)
        assert result.output


def test_controls_in_an_error_stay_in_one_line(tmp_path):
    name = f"{tmp_path}/a\x1b[2J\nb.png"
    result = CliRunner().invoke(app, ["demo", "--image", name, "--question", "what?"])
    (line,) = result.stderr.splitlines()
    assert r"a\x1b[2J b.png" in line


def test_demo_that_lacks_a_question_ends_with_one_line():
    result = CliRunner().invoke(app, ["demo", "--image", "none.png"])
    assert result.exit_code == 2
    assert result.stderr == (
        "vrga_ext demo: question: wanted one to go with the picture, got none\n"
    )
