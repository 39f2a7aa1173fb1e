"""Where results go is looked at before any work is done."""

from __future__ import annotations

import sys

import pytest

from vrga_ext.demo import run, train
from vrga_ext.demo.outputs import check_file, check_folder
from vrga_ext.demo.pictures import DemoError
from vrga_ext.reproduce.run import reproduce


@pytest.fixture
def taken(tmp_path):
    """A file, in which there can be no other."""
    path = tmp_path / "file.txt"
    path.write_text("before")
    return path


def test_paths_that_will_do_are_left_as_they_are(taken, tmp_path):
    check_file("output", taken)
    check_file("output", tmp_path / "new" / "q.PNG", [".png"])
    check_folder("output", tmp_path / "new")
    assert taken.read_text() == "before"
    assert list(tmp_path.iterdir()) == [taken]


def test_demo_refuses_outputs_before_it_loads_a_model(taken, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_demo", lambda: pytest.fail("loaded"))

    def message(output, html=None):
        with pytest.raises(DemoError) as caught:
            run.run_demo(output, 0, html=html)
        return str(caught.value)

    figure = tmp_path / "q.png"
    for wrong in ("q", "q.xyz"):
        assert message(tmp_path / wrong).startswith("output: wanted a name that ends in .")
    (tmp_path / "folder.png").mkdir()
    assert message(tmp_path / "folder.png").endswith("folder.png, which is a folder")
    assert message(figure, tmp_path).startswith("html: wanted a file, got")
    assert message(figure, taken / "p.html") == (
        f"html: {taken / 'p.html'} cannot be written (Not a directory)"
    )


def test_reproduce_refuses_a_file_and_leaves_no_empty_folder(taken, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'vrga_ext[viz]'")
    with pytest.raises(DemoError, match=r"output: .*file\.txt cannot be written"):
        reproduce(output=taken)
    with pytest.raises(FileNotFoundError, match="model: wanted a folder of a saved model"):
        reproduce(["nope"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "file.txt/model"], "output: file.txt/model cannot be written"),
        (["--first", "file.txt"], "first: file.txt cannot be written"),
        (["--threads", "0"], "argument --threads: wanted at least 1, got 0"),
        (["--seed", "-1"], "argument --seed: wanted at least 0, got -1"),
    ],
)
def test_training_that_would_be_in_vain_does_not_start(
    arguments, message, taken, monkeypatch, capsys
):
    monkeypatch.chdir(taken.parent)
    monkeypatch.setattr(train, "build_model", lambda seed: pytest.fail("trained"))
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit):
        train.main()
    assert message in capsys.readouterr().err
