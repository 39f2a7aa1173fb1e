"""The tutorial runs as it stands: its code, what it prints, and the pictures it shows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vrga_ext.demo.run import run_demo

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "tutorial.md").read_text(encoding="utf-8")
# Each block of code, and the output that is shown below it.
BLOCKS = re.findall(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", TEXT, re.S)
PICTURES = re.findall(r"!\[[^\]]+\]\((tutorial/[\w.]+)\)", TEXT)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass
class Run:
    folder: Path
    printed: list[str] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All blocks, one after the other in one namespace and an empty folder."""
    result = Run(tmp_path_factory.mktemp("tutorial"))
    namespace: dict[str, object] = {}
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(result.folder)
    torch.set_num_threads(2)  # as it is on a machine with several cores
    try:
        for code, _ in BLOCKS:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, "tutorial.md", "exec"), namespace)
            result.printed.append(output.getvalue())
            result.threads.append(torch.get_num_threads())
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return result


def test_blocks_print_what_is_shown(run):
    """The same words; numbers may differ in their last digits, as another CPU rounds otherwise."""
    assert len(BLOCKS) > 8
    for (code, shown), printed in zip(BLOCKS, run.printed, strict=True):
        assert NUMBER.split(printed) == NUMBER.split(shown), code
        numbers = [[float(n) for n in NUMBER.findall(text)] for text in (printed, shown)]
        np.testing.assert_allclose(*numbers, rtol=0.03, atol=0.1, err_msg=code)


def test_the_small_model_runs_on_one_thread(run):
    assert set(run.threads) == {1}


def test_every_picture_shown_is_written(run):
    written = {path.name for path in run.folder.iterdir()}
    assert written == {Path(name).name for name in PICTURES} | {"page.html"}
    assert {path.name for path in (DOCS / "tutorial").iterdir()} == written - {"page.html"}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_in_the_repository_is_the_one_written(run, name):
    assert (DOCS / name).stat().st_size < 150_000
    with Image.open(DOCS / name) as kept, Image.open(run.folder / Path(name).name) as made:
        assert made.size == kept.size
        # Fonts and rounding differ a little between versions of matplotlib.
        small = [image.convert("RGB").resize((96, 64)) for image in (kept, made)]
    difference = np.abs(np.subtract(*(np.asarray(image, dtype=float) for image in small)))
    assert difference.mean() < 4, f"if it is meant: cp {run.folder}/*.png docs/tutorial/"


def test_page_is_of_this_answer(run):
    page = (run.folder / "page.html").read_text(encoding="utf-8")
    assert "stepwise: what color is the solid square?" in page
    assert page.count('class="token"') == 117


def test_demo_writes_the_same_page_with_a_map_for_the_first_token(run, tmp_path):
    run_demo(tmp_path / "demo.png", 0, html=tmp_path / "page.html")
    shares, of_demo = map(_shares, (run.folder / "page.html", tmp_path / "page.html"))
    assert shares[0] is None
    assert of_demo[0] > 0
    np.testing.assert_allclose(of_demo[1:], shares[1:], rtol=1e-3)


def _shares(page: Path) -> list[float | None]:
    """Of the heads' attention, the picture's at each token."""
    data = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[0]
    return json.loads(data)["picture"]
