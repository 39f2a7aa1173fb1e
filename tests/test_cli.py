"""The commands' ends: what they print, and errors in one line instead of a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import vrga_ext
from vrga_ext.cli import app

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


def test_demo_that_lacks_a_question_ends_with_one_line():
    result = CliRunner().invoke(app, ["demo", "--image", "none.png"])
    assert result.exit_code == 2
    assert result.stderr == (
        "vrga_ext demo: question: wanted one to go with the picture, got none\n"
    )
