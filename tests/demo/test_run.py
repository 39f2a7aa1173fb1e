"""The demo command: its answers and picture, and what it says to input it cannot use."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import vrga_ext
from tests.adapter.families import build
from tests.prompts.processors import processor as make_processor
from tests.viz.scenes import told
from vrga_ext.demo import figure as drawing
from vrga_ext.demo import run
from vrga_ext.demo.answers import MODEL_PATH, load_demo, messages
from vrga_ext.demo.pictures import MAX_PIXELS, DemoError, decode_picture, open_picture
from vrga_ext.demo.run import SAMPLE_IMAGE, SAMPLE_QUESTION, run_demo
from vrga_ext.viz.grid import as_rgb


def test_model_is_small_and_safetensors_only():
    sizes = {path.name: path.stat().st_size for path in MODEL_PATH.iterdir()}
    assert sum(sizes.values()) < 4e6
    assert "model.safetensors" in sizes
    assert not any(name.endswith((".bin", ".pt", ".pth", ".py")) for name in sizes)


def test_auto_class_loads_the_model():
    model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert model.dtype == torch.float32


def test_auto_processor_loads_the_processor():
    try:
        processor = AutoProcessor.from_pretrained(MODEL_PATH)
    except ImportError as error:
        pytest.skip(f"this transformers needs torchvision for any AutoProcessor: {error}")
    assert processor.image_token == "<|image_pad|>"


def test_left_padded_batch_answers_like_single_questions():
    model, processor = load_demo()
    image = Image.open(SAMPLE_IMAGE)
    questions = ["directly: what color is the solid square?", "what color is the solid heart"]

    def written(texts: list[str]) -> list[str]:
        inputs = processor.apply_chat_template(
            [messages(image, text) for text in texts],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        output = model.generate(**inputs, max_new_tokens=8)
        return processor.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )

    assert written(questions) == [written([text])[0] for text in questions]


def test_demo_answers_and_draws(tmp_path, capsys):
    output = tmp_path / "figure.png"
    outcome = run_demo(output=output, samples=32)
    with Image.open(output) as figure:
        assert figure.width > 1000
    assert outcome.accuracy_without is not None
    assert outcome.accuracy_with is not None
    shown = capsys.readouterr().out
    assert "without VRGA" in shown
    assert SAMPLE_QUESTION in shown


def test_demo_looks_at_a_box(tmp_path, monkeypatch, capsys):
    """The token of the solid square is boosted; the answer is the square's colour."""
    drawn = []
    monkeypatch.setattr(run, "draw", lambda figure, output: drawn.append(figure))
    outcome = run_demo(tmp_path / "figure.png", 64, box="60,30,82,54")
    assert outcome.answer_with.endswith("purple")
    assert outcome.accuracy_with is None
    (figure,) = drawn
    assert np.argwhere(figure.region).tolist() == [[1, 2]]
    assert figure.heading == "Tokens of the box"
    assert [view.is_right for view in figure.views] == [False, True]
    assert "with the box" in capsys.readouterr().out


def test_a_box_of_a_part_of_the_picture():
    guide = run._guide((0, 10, 120, 90), (100, 0, 300, 200))
    assert (guide.boxes, guide.image_sizes) == ((((0, 10, 20, 90),),), ((200, 200),))
    with pytest.raises(DemoError, match=r"box: wanted one in \(100, 0, 300, 200\)"):
        run._guide((0, 10, 90, 90), (100, 0, 300, 200))


def test_demo_takes_any_picture_and_a_direct_question(tmp_path):
    path = tmp_path / "tall.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, size=(300, 140, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    outcome = run_demo(
        image=path,
        question="directly: what color is the solid heart?",
        output=tmp_path / "figure.png",
        html=tmp_path / "new" / "page.html",
        samples=0,
    )
    assert outcome.accuracy_with is None
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert page.count('class="token"') == len(outcome.answer_with.split()) + 1  # and the end
    assert outcome.output.exists()


def test_demo_takes_a_checkpoint(tmp_path):
    try:
        AutoProcessor.from_pretrained(MODEL_PATH)
    except ImportError as error:
        pytest.skip(f"this transformers needs torchvision for any AutoProcessor: {error}")
    outcome = run_demo(
        image=SAMPLE_IMAGE,
        question="directly: what color is the solid square?",
        model_id=str(MODEL_PATH),
        output=tmp_path / "figure.svg",
        samples=0,
        max_new_tokens=8,
    )
    assert outcome.answer_without == "so solid square purple"
    assert outcome.output.read_text().startswith("<?xml")


def test_brackets_are_text_and_no_markup(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "load_checkpoint", lambda model_id: load_demo())
    answer = run._answer
    monkeypatch.setattr(
        run, "_answer", lambda *given: replace(answer(*given), words="The sign says [stop]")
    )
    run_demo(
        Path("runs[v2]/q.png"), 0, SAMPLE_IMAGE, "what [/x] color is :star:?", "some/model",
        max_new_tokens=2,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "what [/x] color is :star:?" in shown
    assert "with VRGA  The sign says [stop]" in shown
    assert "picture written to runs[v2]/q.png" in shown


def test_answers_with_controls_are_printed_escaped(tmp_path, monkeypatch, capsys):
    """Neither the terminal, nor the figure's fonts, nor the page gets them raw."""
    words = "\x1b[2J\x1b]0;title\x07 red\r\n\u202eback \x9b5m"
    monkeypatch.setattr(run, "load_checkpoint", lambda model_id: load_demo())
    answer = run._answer
    monkeypatch.setattr(run, "_answer", lambda *given: replace(answer(*given), words=words))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_demo(
            tmp_path / "q.svg", 0, SAMPLE_IMAGE, "what \x1b[31m is \x07 red?", "some/model",
            max_new_tokens=2, html=tmp_path / "p.html",
        )  # fmt: skip
    shown = capsys.readouterr().out
    assert r"what \x1b[31m is \x07 red?" in shown
    assert r"with VRGA  \x1b[2J\x1b]0;title\x07 red\r\n\u202eback \x9b5m" in shown
    drawn = (tmp_path / "q.svg").read_text(encoding="utf-8")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    for text in (shown, drawn, page):
        assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
    ElementTree.fromstring(drawn)


def test_the_small_model_runs_on_one_thread(tmp_path, monkeypatch):
    threads = []
    generate = run.answers.generate

    def counted(*given):
        threads.append(torch.get_num_threads())
        return generate(*given)

    monkeypatch.setattr(run.answers, "generate", counted)
    torch.set_num_threads(2)
    try:
        run_demo(tmp_path / "q.png", 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert threads == [1] * 4


def test_moment_is_the_one_that_was_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(run, "draw", lambda figure, output: figures.append(figure))
    Image.new("RGB", (500, 10)).save(tmp_path / "black.png")  # in which the model loses its thread
    run_demo(tmp_path / "q.png", 0, tmp_path / "black.png", "what color is the hollow star?")
    assert figures[0].moment == "attention averaged over the answer"
    run_demo(tmp_path / "q.png", 0)
    at_color = "at the moment the model is about to write the color"
    assert figures[1].moment == f"attention {at_color}, after 16 written steps"
    scene = told()
    attention, moment = run._attention(scene.capture, scene.answer, at_color=True)
    assert moment == f"{at_color}, after 2 written steps"
    assert 0 < attention.sum() < 1
    runs = [
        SimpleNamespace(region=scene.capture.region(0), attention=attention, words="", moment=when)
        for when in ("averaged over the answer", moment)
    ]
    mixed = run._figure(None, "", tuple(runs), run.DEMO_CONFIG, None, None, 0, None).moment
    assert mixed == (
        f"without VRGA attention averaged over the answer; with VRGA {at_color}, after 2 written "
        "steps"
    )


@pytest.mark.parametrize("size", [(500, 10), (10, 500), (168, 168)])
def test_texts_of_the_figure_do_not_meet(size, tmp_path, monkeypatch):
    canvases = []
    monkeypatch.setattr(
        drawing.style.Figure, "savefig", lambda canvas, *_, **__: canvases.append(canvas)
    )
    grid = np.ones((2, 2)) / 8
    view = drawing.View("Visual heads", "W" * 36, True, grid)
    drawing.draw(
        drawing.Figure(
            Image.new("RGB", size), "What $x_{$ is it? " * 20, "Tokens", "outlined",
            grid > 0, (view, view),
            "attention at a moment " * 12, "a footer " * 14,
        ),
        tmp_path / "q.png",
    )  # fmt: skip
    (canvas,) = canvases
    canvas.draw_without_rendering()
    panels = canvas.axes[:3]
    texts = [text for axes in panels for text in (axes.title, axes.texts[-1])] + canvas.texts
    boxes = [text.get_window_extent() for text in texts]
    for index, box in enumerate(boxes):
        assert canvas.bbox.x0 <= box.x0
        assert box.x1 <= canvas.bbox.x1
        met = [texts[i] for i, other in enumerate(boxes[:index]) if box.overlaps(other)]
        assert not met, texts[index]
    for axes in panels:
        gap = axes.get_window_extent().y0 - axes.texts[-1].get_window_extent().y1
        assert gap > 5 / 72 * canvas.dpi


def test_maps_lie_over_the_part_that_the_model_sees(tmp_path, monkeypatch):
    processor = make_processor("vicuna")  # cuts out the central square, as LLaVA 1.5's does
    model = build("llava", vocab_size=600).model
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    monkeypatch.setattr(run, "load_checkpoint", lambda model_id: (model, processor))
    drawn = []
    monkeypatch.setattr(run, "draw", lambda figure, output: drawn.append(figure.image))
    pixels = np.random.default_rng(0).integers(0, 255, size=(48, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    run_demo(
        tmp_path / "figure.png", 0, tmp_path / "wide.png", "what is it?", "some/llava",
        max_new_tokens=3,
    )  # fmt: skip
    assert np.array_equal(drawn[0], pixels[:, 24:72])


def test_demo_model_itself_is_left_alone(tmp_path):
    model, _ = load_demo()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with vrga_ext.enable(model):
        pass
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def _huge_png() -> bytes:
    """A PNG header that announces far more pixels than anybody should decode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_unusable_pictures_get_a_clear_message(tmp_path):
    def message(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DemoError) as caught:
            open_picture(path)
        return str(caught.value)

    good = SAMPLE_IMAGE.read_bytes()
    assert "is not a picture" in message("text.png", b"hello")
    assert "is not a picture" in message("empty.png", b"")
    assert "damaged" in message("cut.png", good[: len(good) // 2])
    assert f"at most {MAX_PIXELS:,} pixels" in message("huge.png", _huge_png())
    with pytest.raises(DemoError, match="there is no file"):
        open_picture(tmp_path / "missing.png")
    with pytest.raises(DemoError, match="not a file"):
        open_picture(tmp_path)
    thin = tmp_path / "thin.png"
    Image.new("RGB", (400, 2)).save(thin)
    with pytest.raises(DemoError, match="within a factor"):
        open_picture(thin)


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_greys_of_16_bits_keep_their_shades(kind):
    file = BytesIO()
    Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)).save(file, kind)
    greys = np.asarray(decode_picture(file, "grey"))
    assert greys.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGB", "RGBA", "1"])
def test_pictures_with_transparency_are_read_without_a_word(mode, kind):
    picture = Image.new("RGB", (8, 8), (200, 30, 30))
    picture.paste((30, 200, 30), (4, 0, 8, 8))
    file = BytesIO()
    options = {}
    if mode in ("P", "L", "RGB", "1"):
        options = {"P": bytes([0, 128, 255]), "L": 76, "RGB": (200, 30, 30), "1": 0}
        options = {"transparency": 0 if kind == "GIF" else options[mode]} if kind != "WEBP" else {}
    wanted = picture if mode in ("RGB", "RGBA", "P") else picture.convert("L").convert("RGB")
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    picture.save(file, kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = decode_picture(file, "picture")
    assert read.mode == "RGB"
    if kind == "PNG" and mode != "1":
        np.testing.assert_allclose(np.asarray(read), np.asarray(wanted), atol=3)


def test_pictures_that_do_not_convert_are_named():
    with pytest.raises(ValueError, match="image: wanted a picture that converts to RGB, got"):
        as_rgb(Image.new("La", (4, 4)))


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_damaged_pictures_are_read_or_refused(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"]))
    file = BytesIO()
    picture = Image.open(SAMPLE_IMAGE).resize((40, 30)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = data.draw(st.integers(0, 9))
    picture.save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    raw = bytearray(file.getvalue())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = decode_picture(BytesIO(bytes(raw)), "some picture")
    except DemoError as error:
        assert str(error).startswith("image: ")  # noqa: PT017
    else:
        assert found.mode == "RGB"
        assert min(found.size) > 0


def test_paths_that_no_file_can_have(tmp_path):
    for name in ("a" * 300, "a\0b", "\ud800"):
        with pytest.raises(DemoError, match="image: "):
            open_picture(tmp_path / name)
        with pytest.raises(DemoError, match=r"html: .* cannot be written"):
            run_demo(tmp_path / "q.png", 0, html=tmp_path / name)


def test_greys_of_no_known_range_are_refused():
    file = BytesIO()
    Image.fromarray(np.array([[0, 0.5]], dtype=np.float32)).save(file, "TIFF")
    with pytest.raises(DemoError, match=r"greys of 8 or 16 bits, got float32 from 0 to 0\.5"):
        decode_picture(file, "grey")


def test_inconsistent_requests_are_refused_before_anything_is_written(tmp_path):
    output = tmp_path / "figure.png"
    with pytest.raises(DemoError, match="wanted one to go with the picture"):
        run_demo(output, 0, image=SAMPLE_IMAGE)
    with pytest.raises(DemoError, match="does not know 'cat'"):
        run_demo(output, 0, image=SAMPLE_IMAGE, question="what color is the cat?")
    with pytest.raises(DemoError, match=r"question: wanted a text in Unicode, got '\\udcff'"):
        run_demo(output, 0, question="\udcff")
    with pytest.raises(DemoError, match="max_new_tokens: wanted at least 1, got 0"):
        run_demo(output, 0, max_new_tokens=0)
    for name in ("a/b/c", "/no/such", "./folder"):
        with pytest.raises(FileNotFoundError, match="model: wanted a folder of a saved"):
            run_demo(output, 0, SAMPLE_IMAGE, "what is it?", name)
    for blank in ("", "  "):
        with pytest.raises(DemoError, match="question: wanted a question, got nothing"):
            run_demo(output, 0, question=blank)
    with pytest.raises(DemoError, match="wanted a picture of yours"):
        run_demo(output, 0, model_id="somebody/something")
    with pytest.raises(DemoError, match="samples: wanted at least 0, got -1"):
        run_demo(output, -1)
    assert not output.exists()


def test_image_without_a_rectangle_is_not_drawn():
    region = SimpleNamespace(grid=None, image_positions=torch.arange(7))
    runs = (None, SimpleNamespace(region=region))
    with pytest.raises(DemoError, match="form a rectangle, got 7 image tokens"):
        run._figure(None, "What is it?", runs, None, None, None, 0, None)


@pytest.fixture
def copied(tmp_path):
    """A copy of the demo model's folder."""
    return Path(shutil.copytree(MODEL_PATH, tmp_path / "copied"))


def test_folders_without_a_model_are_named(copied, tmp_path):
    for folder in (tmp_path, tmp_path / "missing", copied / "config.json"):
        with pytest.raises(FileNotFoundError, match=f"model: wanted a folder of a .* got {folder}"):
            load_demo(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""), ("model.safetensors", b"text" * 99),
        ("model.safetensors", None),
        ("config.json", b"{}"), ("config.json", b"[1]"), ("config.json", b"null"),
        ("config.json", b"\xff\xfe"), ("config.json", b'{"model_type": "bert"}'),
        ("config.json", b'{"model_type": "llava"}'), ("config.json", b"[" * 100_000),
        ("tokenizer.json", b"{}"), ("tokenizer.json", b"[1]"), ("tokenizer.json", b"{"),
        ("preprocessor_config.json", b"[]"), ("tokenizer_config.json", b"5"),
        ("preprocessor_config.json", b"{"),
    ],
)  # fmt: skip
def test_folders_with_another_model_are_named(copied, name, content):
    if content is None:  # cut short
        content = (copied / name).read_bytes()[:-1000]
    (copied / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)) as caught:
        load_demo(copied)
    assert str(copied) in str(caught.value)


def test_a_model_without_all_weights_is_refused(copied):
    weights = load_file(copied / "model.safetensors")
    weights.pop("model.language_model.layers.0.mlp.up_proj.weight", None)
    fewer = {key: value for key, value in weights.items() if "layers.1.mlp" not in key}
    assert len(fewer) < len(weights)
    save_file(fewer, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"[\d,]+ weights, of [\d,]+ that its configuration names"):
        load_demo(copied)
    more = fewer | {"other": torch.zeros(10**6)}
    save_file(more, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights .*mlp.*, \d+ in all"):
        load_demo(copied)


def test_a_model_of_another_size_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model: wanted a saved model with its processor, got"):
        load_demo(copied)
