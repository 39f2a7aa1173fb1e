"""Where results go is looked at before any work is done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools.demo_model import __main__ as train
from tools.demo_model import training
from vrga_ext.demo import figure as drawing
from vrga_ext.demo import run
from vrga_ext.demo.outputs import check_apart, check_file, check_folder
from vrga_ext.demo.pictures import DemoError
from vrga_ext.reproduce import run as reproduction
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
    check_file("html", Path("/dev/null"))
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


def test_files_that_are_one_are_refused_however_they_are_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = Path("one.png")
    one.write_text("picture")
    Path("inner").mkdir()
    Path("link.png").symlink_to("one.png")
    Path("dangling.png").symlink_to("new.png")
    Path("folder").symlink_to("inner")
    Path("hard.png").hardlink_to("one.png")
    same = [
        ("one.png", "one.png"), ("one.png", "link.png"), ("one.png", "hard.png"),
        ("one.png", "inner/../one.png"), ("one.png", "gone/../one.png"),
        ("one.png", str(tmp_path / "one.png")),
        ("new.png", "dangling.png"), ("new.png", "NEW.png"), ("inner/a.png", "folder/a.png"),
        ("gone/../new.png", "./new.png"), ("caf\xe9.png", "cafe\u0301.png"),
        ("new.png", "new.png/page.html"), ("new.png/a/page.html", "new.png"),
    ]  # fmt: skip
    for first, second in same:
        with pytest.raises(DemoError, match=r"html: wanted .* output, got") as caught:
            check_apart([("output", Path(first)), ("html", Path(second))])
        assert str(Path(second)) in str(caught.value)
    check_apart([("output", Path("new")), ("first", Path("new/first"))], folders=True)
    apart = [("one.png", "two.png"), ("new.png", "inner/new.png"), ("a.b/x.png", "a/x.png")]
    for first, second in apart:
        check_apart([("output", Path(first)), ("html", Path(second))])


def test_outputs_take_the_place_of_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photo.PNG").write_text("picture")
    Path("copy.png").hardlink_to("photo.PNG")
    for output in ("photo.PNG", "copy.png"):
        with pytest.raises(DemoError, match=f"wanted another place than image, .* {output}"):
            check_apart([("output", Path(output))], [("image", Path("photo.PNG"))])
    # Where capitals count, this is another file; where they do not, it is there already.
    check_apart([("output", Path("photo.png"))], [("image", Path("photo.PNG"))])
    assert not Path("photo.png").exists()


def test_demo_keeps_its_files_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_demo", lambda: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    Path("own.png").write_bytes(run.SAMPLE_IMAGE.read_bytes())
    question = "directly: what color is the solid heart?"
    with pytest.raises(DemoError, match=r"html: wanted another place than output, got x\.png"):
        run.run_demo(Path("x.png"), 0, html=Path("x.png"))
    for output, html in (("own.png", None), ("x.png", "own.png")):
        with pytest.raises(DemoError, match=r"wanted another place than image, got own\.png"):
            run.run_demo(Path(output), 0, Path("own.png"), question, html=html and Path(html))
    with pytest.raises(DemoError, match=r"output: wanted another .* image, got .*sample\.png"):
        run.run_demo(run.SAMPLE_IMAGE, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["own.png"]


def test_report_takes_the_place_of_nothing_that_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "load_checkpoint", lambda where: pytest.fail("loaded"))
    folder = Path("data")
    (folder / "data").mkdir(parents=True)
    picture = Path("pictures/heads.png")
    picture.parent.mkdir()
    picture.write_bytes(run.SAMPLE_IMAGE.read_bytes())
    row = {"image": "../pictures/heads.png", "question": "what?", "answer": "a"}
    (folder / "q.jsonl").write_text(json.dumps(row | {"bbox": [10, 10, 50, 50]}))
    model = Path("model")
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "README.md").write_text("card")
    for output, other in (
        ("data", "data"), ("data/data", "data"), ("model", "model"), ("pictures", "data"),
        ("model/../data", "data"),
    ):  # fmt: skip
        with pytest.raises(DemoError, match=f"wanted another place than {other}, got {output}"):
            reproduce(["model"], folder, Path(output))
    assert (model / "README.md").read_text() == "card"


def test_demo_that_is_interrupted_leaves_what_was_there(tmp_path, monkeypatch):
    """Ctrl-C while a figure or a page is written."""
    figure, page = tmp_path / "figure.png", tmp_path / "page.html"

    def interrupted(canvas, file, **options):
        Path(file).write_bytes(b"half a picture")
        raise KeyboardInterrupt

    for before in (None, "before"):
        if before is not None:
            figure.write_text(before)
        with monkeypatch.context() as patched:
            patched.setattr(drawing.style.Figure, "savefig", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run.run_demo(figure, 0, html=page)
        there = [path.name for path in tmp_path.iterdir()]
        assert there == ([] if before is None else ["figure.png"])
    assert figure.read_text() == "before"


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
    monkeypatch.setattr(training, "build_model", lambda seed: pytest.fail("trained"))
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit):
        train.main()
    assert message in capsys.readouterr().err
