"""Questions with boxes from files, and a real architecture that answers them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from transformers import AutoProcessor
from typer.testing import CliRunner

from tests.adapter.families import build
from tests.prompts.processors import processor as make_processor
from vrga_ext._arguments import check_pixels
from vrga_ext.cli import app
from vrga_ext.demo.answers import MODEL_PATH
from vrga_ext.demo.pictures import DemoError
from vrga_ext.geometry import token_geometry
from vrga_ext.reproduce.questions import load_questions
from vrga_ext.reproduce.run import reproduce
from vrga_ext.reproduce.study import study
from vrga_ext.reproduce.vqa import DIRECT, GUIDED, REASON, BoxTask, final_answer, soft_score

ROW = {
    "image": "card.png",
    "question": "what is the name of the company on the card?",
    "answer": ["blink"] * 9 + ["nutrition"],
    "dataset_id": "36269",
    "bbox": [24.0, 12.0, 24.0, 12.0],
}


@pytest.fixture
def folder(tmp_path):
    """Two pictures of 96 x 48 pixels and their questions, as JSON lines."""
    pixels = np.random.default_rng(0).integers(0, 255, size=(2, 48, 96, 3), dtype=np.uint8)
    for name, content in zip(("card.png", "sign.png"), pixels, strict=True):
        Image.fromarray(content).save(tmp_path / name)
    second = ROW | {"image": "sign.png", "question": "Read the sign!", "bbox": [0, 0, 10, 48]}
    lines = [json.dumps(ROW), "", json.dumps(second)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_json_lines_and_pictures(folder):
    first, second = load_questions(folder)
    assert first.text == ROW["question"]
    assert first.answers == tuple(ROW["answer"])
    assert first.box == (24, 12, 48, 24)  # left, top, right, bottom
    assert second.picture().size == (96, 48)
    assert load_questions(folder / "questions.jsonl", 1) == [first]


def test_list_of_objects_with_the_other_name_for_answers(folder):
    row = ROW | {"answers": "blink"}
    del row["answer"]
    (folder / "one.json").write_text(json.dumps([row]))
    assert load_questions(folder / "one.json")[0].answers == ("blink",)


def test_parquet_with_pictures_inside(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="reads parquet: pip install pyarrow")
    from pyarrow import parquet

    content = (folder / "card.png").read_bytes()
    rows = [ROW | {"image": {"bytes": content, "path": "card.png"}}] * 3
    (folder / "data").mkdir()
    (folder / "questions.jsonl").unlink()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "train-0.parquet")
    found = load_questions(folder)
    assert len(found) == 3
    assert found[2].box == (24, 12, 48, 24)
    assert np.array_equal(found[0].picture(), Image.open(folder / "card.png"))


def test_parquet_without_pyarrow_says_what_is_needed(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (folder / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match="needs pyarrow"):
        load_questions(folder / "data.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, r"bbox: wanted \[x, y, width, height\] in bad.jsonl, row 1"),
        ({"bbox": [1, 2, 0, 3]}, "a width and height above 0"),
        ({"bbox": [10**400, 0, 1, 1]}, r"bbox: wanted \[x, y, width, height\] in bad"),
        ({"bbox": [0, 0, True, 1]}, "bbox: wanted .* got .0, 0, True, 1"),
        ({"image": ""}, "image: wanted a file name or bytes"),
        ({"bbox": 5}, "bbox: wanted .* got 5"),
        ({"bbox": [math.nan, 0, 1, 1]}, "bbox: wanted .* got .nan, 0, 1, 1"),
        ({"bbox": None}, "got no bbox"),
        ({"answer": 3}, "answer: wanted strings .* got 3"),
        ({"answer": [3]}, "answer: wanted strings"),
        ({"answer": []}, "answer: wanted strings"),
        ({"question": " "}, "question: wanted a string"),
        ({"image": 5}, "image: wanted a file name or bytes"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, change, message):
    (tmp_path / "bad.jsonl").write_text(json.dumps(ROW | change))
    with pytest.raises(ValueError, match=message):
        load_questions(tmp_path / "bad.jsonl")


def test_files_that_do_not_fit_are_named(folder):
    with pytest.raises(FileNotFoundError, match="hf download --repo-type dataset jrzhang"):
        load_questions(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"wanted files of \.parquet, \.jsonl, \.json"):
        load_questions(folder / "empty")
    with pytest.raises(ValueError, match="wanted a file of"):
        load_questions(folder / "card.png")
    (folder / "questions.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_questions(folder)
    (folder / "questions.jsonl").write_text(json.dumps(ROW | {"image": "lost.png"}))
    with pytest.raises(DemoError, match="there is no file"):
        load_questions(folder)[0].picture()


def test_files_that_cannot_be_read_are_named(tmp_path):
    number = json.dumps(ROW).replace("24.0", "1" * 5000, 1).encode()
    for name, content in [
        ("bad.jsonl", b'{"question": "\xff"}'),
        ("bad.json", b"\xff\xfe"),
        ("long.jsonl", number),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"data: {name} is not valid JSON"):
            load_questions(tmp_path / name)
    pytest.importorskip("pyarrow", reason="reads parquet: pip install pyarrow")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(ValueError, match=r"data: bad\.parquet cannot be read as parquet"):
        load_questions(tmp_path / "bad.parquet")


DEEP = "[" * 100_000
TEXTS = ["", "[", "{}", "null", "5", '"text"', DEEP, '{"a":' * 50_000, "[[]]", "[{}]", "NaN", "\0"]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_foreign_json_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"data: .*{name}"):
        load_questions(tmp_path / name)


HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.just(10**400), st.just(1.7e308),
    st.floats(allow_nan=True), st.text(max_size=3), st.just("\ud800"), st.just("a" * 300),
    st.just("x\0y"), st.lists(st.text(max_size=2), max_size=3), st.just("."), st.just("/"),
    st.lists(st.floats() | st.integers(-9, 99) | st.booleans(), min_size=3, max_size=5),
    st.lists(st.integers(-20, 99), min_size=4, max_size=4),
    st.dictionaries(st.sampled_from(["bytes", "path", "x"]), st.text(max_size=2), max_size=2),
)  # fmt: skip


@given(st.data())
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_any_value_of_a_row_may_be_another(folder, data):
    """Either the row is usable, or a ValueError names it."""
    row = dict(ROW)
    for name in data.draw(st.lists(st.sampled_from(["image", "question", "answer", "bbox"]))):
        row[name] = data.draw(HOSTILE)
    (folder / "bad.jsonl").write_text(json.dumps(row))
    try:
        (found,) = load_questions(folder / "bad.jsonl")
    except ValueError as error:
        assert str(error).startswith("data: ")  # noqa: PT017
        assert "bad.jsonl, row 1" in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
        return
    assert found.size == found.picture().size == (96, 48)
    check_pixels("bbox", [found.box], found.size)
    found.text.encode()


@given(st.data())
@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_damaged_parquet_is_named(folder, data):
    pyarrow = pytest.importorskip("pyarrow", reason="reads parquet: pip install pyarrow")
    from pyarrow import parquet

    rows = [ROW | {"image": {"bytes": (folder / "card.png").read_bytes(), "path": "card.png"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows * 2), folder / "q.parquet")
    raw = bytearray((folder / "q.parquet").read_bytes())
    if data.draw(st.integers(0, 3)) == 0:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:  # its end, where the layout is, more often than its pictures
        for _ in range(data.draw(st.integers(1, 3))):
            first = data.draw(st.sampled_from([0, len(raw) - 1500]))
            raw[data.draw(st.integers(first, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "q.parquet").write_bytes(raw)
    try:
        found = load_questions(folder / "q.parquet")
    except ValueError as error:
        assert "q.parquet" in str(error)  # noqa: PT017
    else:
        assert all(question.picture().size == question.size for question in found)


def test_parquet_of_other_columns(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="reads parquet: pip install pyarrow")
    from pyarrow import parquet

    def said(**columns):
        table = pyarrow.table({name: [value] for name, value in (ROW | columns).items()})
        parquet.write_table(table, folder / "q.parquet")
        with pytest.raises(ValueError, match=r"q\.parquet") as caught:
            load_questions(folder / "q.parquet")
        return str(caught.value)

    content = (folder / "card.png").read_bytes()
    assert "image: wanted a file name or bytes" in said(image={"bytes": [1, 2], "path": None})
    assert "is not a picture" in said(image={"bytes": b"text", "path": None})
    assert "bbox: wanted" in said(image={"bytes": content}, bbox="0,0,1,1")
    assert "got no bbox" in said(image={"bytes": content}, bbox=None)
    table = pyarrow.table({"a": [1]})
    parquet.write_table(table, folder / "q.parquet")
    with pytest.raises(ValueError, match="got no image, question, answer, bbox"):
        load_questions(folder / "q.parquet")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0.25, 0.25, 0.5, 0.5], "in pixels of the image of 96 x 48, got .* shares of its sides"),
        ([0, 0, 1, 1], "in pixels of the image"),
        ([0.0, 0.0, 1.0, 1.0], "in pixels of the image"),
        ([96, 0, 10, 10], "an area inside the image of 96 x 48"),
        ([-20, 0, 10, 10], "an area inside the image"),
        ([10, 48, 10, 10], "an area inside the image"),
        ([1.7e308, 0, 1.7e308, 10], "an area inside the image"),
        ([0, 0, math.inf, 10], "bbox: wanted"),
        (["0", "0", "5", "5"], "bbox: wanted"),
        ([0, 0, 5, 5, 5], "bbox: wanted"),
        ([0, 0, -5, 5], "a width and height above 0"),
    ],
)
def test_boxes_that_are_not_in_pixels_of_the_picture(folder, box, message):
    (folder / "bad.jsonl").write_text(json.dumps(ROW | {"bbox": box}))
    with pytest.raises(ValueError, match=f"data: bbox: wanted .*{message}|{message}") as caught:
        load_questions(folder / "bad.jsonl")
    assert "bad.jsonl, row 1" in str(caught.value)


def test_a_box_that_reaches_out_of_the_picture_is_cut(folder):
    (folder / "cut.jsonl").write_text(json.dumps(ROW | {"bbox": [-10, 40, 20, 20]}))
    (question,) = load_questions(folder / "cut.jsonl")
    _, processor = tiny("qwen2_5_vl", "chatml")
    assert BoxTask(processor, [question]).boxes == [(0, 40, 10, 48)]


def test_files_of_other_programs(tmp_path):
    """A byte order mark, and a suffix in capitals."""
    Image.new("RGB", (96, 48)).save(tmp_path / "card.png")
    (tmp_path / "ROWS.JSONL").write_text(json.dumps(ROW), encoding="utf-8-sig")
    (tmp_path / "list.Json").write_text(json.dumps([ROW] * 2), encoding="utf-8-sig")
    assert len(load_questions(tmp_path)) == 1
    assert len(load_questions(tmp_path / "ROWS.JSONL")) == 1
    assert len(load_questions(tmp_path / "list.Json")) == 2


def test_soft_score_is_that_of_vqa():
    humans = ["2 dogs"] * 2 + ["two cats"] * 8
    # Of the ten sets of nine humans two hold one match and eight hold two.
    assert soft_score("Two dogs.", humans) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert soft_score("2 cats", humans) == 1
    assert soft_score("birds", humans) == 0
    assert soft_score("the dog's", ["dogs"]) == 1
    assert soft_score("5", [".5"] * 10) == 0
    assert soft_score(".5 kg.", [".5 kg"] * 10) == 1
    assert soft_score("", ["a"]) == 1  # both are nothing once articles are gone


def test_final_answer_of_a_chain():
    assert final_answer("I look. Answer: no. Wait.\n**Answer:** blink") == "blink"
    assert final_answer("one line\nthe last line\n") == "the last line"
    assert final_answer("") == ""


def tiny(family: str, style: str):
    """A random model of a real architecture, and a processor whose image token it knows."""
    processor = make_processor(style)
    model = build(family, vocab_size=600).model
    ids = processor.tokenizer.convert_tokens_to_ids
    model.config.image_token_id = ids(processor.image_token)
    if style == "chatml":
        model.config.vision_start_token_id = ids("<|vision_start|>")
        model.config.vision_end_token_id = ids("<|vision_end|>")
    return model, processor


def test_real_architecture_runs_every_condition(folder):
    model, processor = tiny("qwen2_5_vl", "chatml")
    task = BoxTask(processor, load_questions(folder), max_new_tokens=6)
    seen = []
    found = study("tiny", model, processor, task, lambda what, count: seen.append(count))
    conditions = 2 * 3 + len(found.controls) + len(found.masks)
    assert sum(seen) == 2 * conditions
    for mode in (DIRECT, REASON, GUIDED):
        attention = found.plain[mode].attention
        assert attention.drift.shape == (2, 5)  # six tokens were written, five of them read
        assert np.isfinite(attention.answer).all()
        assert attention.selected.any((1, 2)).all()
    assert set(found.masks) >= {"visual heads", "per layer, lowest EFR"}


def test_region_reaches_the_prompt_and_the_tokens(folder):
    _, processor = tiny("qwen2_5_vl", "chatml")
    task = BoxTask(processor, load_questions(folder))
    texts = [
        processor.tokenizer.decode(inputs["input_ids"][0]) for _, inputs in task.batches(GUIDED)
    ]
    assert "from (0.25, 0.25) to (0.50, 0.50)" in texts[0]
    assert texts[0].index("Think") < texts[0].index("what is the name")  # the question comes last
    _, inputs = next(task.batches(GUIDED))
    rows, columns = (inputs["image_grid_thw"][0, 1:] // 2).tolist()
    geometry = token_geometry(processor, task.sizes[0], rows * columns)
    assert (rows, columns) == (5, 11)  # of 8.7 x 9.6 pixels: half of the third row is inside
    inside = np.unravel_index(geometry.box_tokens([task.boxes[0]]), (rows, columns))
    assert np.transpose(inside).tolist() == [[1, 3], [1, 4], [2, 3], [2, 4]]


def test_centre_crop_moves_the_box_and_drops_what_is_lost(folder):
    model, processor = tiny("llava", "vicuna")
    questions = load_questions(folder)
    task = BoxTask(processor, questions, max_new_tokens=3)
    assert task.sizes == [(48, 48)]  # the central square of 96 x 48
    assert task.boxes == [(0, 12, 24, 24)]
    assert "1 more left out" in task.about
    ((indices, inputs),) = task.batches(DIRECT)
    written = task.answer(model, inputs, DIRECT)
    assert list(indices) == [0]
    assert written.shape == (1, 3)
    with pytest.raises(ValueError, match="wanted at least one box inside its picture, got none"):
        BoxTask(processor, questions[1:])


def test_checkpoint_and_data_from_the_command(folder):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'vrga_ext[viz]'")
    try:
        AutoProcessor.from_pretrained(MODEL_PATH)
    except ImportError as error:
        pytest.skip(f"this transformers needs torchvision for any AutoProcessor: {error}")
    with torch.random.fork_rng(), (folder / "printed.txt").open("w") as printed:
        (found,) = reproduce(
            [str(MODEL_PATH)], folder, folder / "out", 1, max_new_tokens=6,
            console=Console(file=printed),
        )  # fmt: skip
    assert found.task.modes == (DIRECT, REASON, GUIDED)
    text = (folder / "out" / "README.md").read_text()
    assert "naming the region in the prompt" in text
    assert "no such prompt" not in text
    assert f"--data {folder.name} --max-new-tokens 6" in text


def test_requests_that_do_not_fit_end_with_a_message(folder):
    def message(*arguments):
        result = CliRunner().invoke(app, ["reproduce", *map(str, arguments)])
        assert result.exit_code == 2
        return result.stderr

    assert "there is no file or folder" in message("--model", "m", "--data", folder / "nowhere")
    assert "wanted a checkpoint to answer" in message("--data", folder)
    assert "wanted a folder of a saved model" in message("--model", "somebody/something")
    tiny("qwen2_5_vl", "chatml")[0].save_pretrained(folder / "other")
    make_processor("chatml").save_pretrained(folder / "other")
    assert "wanted one trained by tools.demo_model" in message("--model", folder / "other")
