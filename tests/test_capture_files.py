"""Files of captures: what is written is read again, and of what is not a capture nothing is."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save, save_file

import vrga_ext
from tests.adapter.families import build, greedy
from tests.viz.scenes import told
from vrga_ext import Capture
from vrga_ext.analysis import drift, relevant_tokens
from vrga_ext.captures import Region

KEY = "vrga_capture"
FUZZ = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def assert_equal(one, other, kind) -> None:
    for field in fields(kind):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype, field.name
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        elif field.name == "regions":
            for pair in zip(ours, theirs, strict=True):
                assert_equal(*pair, Region)
        else:
            assert ours == theirs, field.name


@cache
def captures() -> dict[str, Capture]:
    """Of every kind: without an image in one row, beams, no rows, all keys, parts."""
    family = build("qwen2_5_vl")
    inputs = family.prompt([5, (4, 4), 7, 8], [5, 6, 7], [(2, 3), 9, (4, 4), 10, 11])
    last = inputs["input_ids"].shape[1] - 1
    found = {}
    for name, options, more in (
        ("statistics", {}, {}),
        ("image", {"rows": True}, {}),
        ("all keys", {"rows": "all"}, {}),
        ("no rows of the prompt", {"prompt_rows": []}, {}),
        ("beams", {"rows": True}, {"num_beams": 2}),
    ):
        with vrga_ext.capture(family.model, question_end=last, **options) as recording:
            output = greedy(family.model, inputs, 3, **more)
        found[name] = recording.last
        if more:
            found["followed beams"] = recording.last.follow_beams(output.beam_indices)
    found["prompt alone"] = found["all keys"].prompt
    found["generated alone"] = found["image"].generated
    found["nothing at all"] = found["image"].select(slice(0, 0))
    found["boosted"] = told().capture
    return found


@pytest.mark.parametrize(
    "name",
    [
        "statistics",
        "image",
        "all keys",
        "no rows of the prompt",
        "beams",
        "followed beams",
        "prompt alone",
        "generated alone",
        "nothing at all",
        "boosted",
    ],
)
def test_captures_of_every_kind_come_back(name, tmp_path):
    captures()[name].save(tmp_path / "one.safetensors")
    assert_equal(Capture.load(tmp_path / "one.safetensors"), captures()[name], Capture)


def test_files_of_earlier_versions_are_read(tmp_path):
    """They name the tensors that are not there as null, and do not tell the model."""
    captures()["statistics"].save(tmp_path / "new")
    with safe_open(tmp_path / "new", framework="pt") as file:
        about = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = about | {"rows": None, "columns": None}
    assert changed.pop("model")["model_type"] == "qwen2_5_vl"
    save_file(tensors, tmp_path / "old", {KEY: json.dumps(changed)})
    wanted = replace(captures()["statistics"], model=None)
    assert_equal(Capture.load(tmp_path / "old"), wanted, Capture)


def test_a_file_is_as_open_leaves_it_and_whole_or_not_there(tmp_path, monkeypatch):
    capture = captures()["statistics"]
    before = os.umask(0o027)
    try:
        capture.save(tmp_path / "one")
    finally:
        os.umask(before)
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture.save(tmp_path / "one")
    assert list(tmp_path.iterdir()) == [tmp_path / "one"]
    assert_equal(Capture.load(tmp_path / "one"), capture, Capture)


def interrupted(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise KeyboardInterrupt


def test_reading_from_a_file_that_is_written_anew(tmp_path):
    """Tensors of the first reading stay what they were."""
    first, second = captures()["statistics"], captures()["image"]
    first.save(tmp_path / "one")
    read = Capture.load(tmp_path / "one")
    second.save(tmp_path / "one")
    assert_equal(read, first, Capture)
    assert_equal(Capture.load(tmp_path / "one"), second, Capture)


# ---- files that are none -------------------------------------------------------------------------


@cache
def content(name: str = "all keys") -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and metadata of a capture."""
    with TemporaryDirectory() as folder:
        captures()[name].save(Path(folder, "one"))
        with safe_open(Path(folder, "one"), framework="pt") as file:
            about = json.loads(file.metadata()[KEY])
        return load(Path(folder, "one").read_bytes()), about


def refusal(raw: bytes) -> str:
    """What is said of a file that is no capture."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "some.safetensors")
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"path: wanted a file written by Capture.save") as e:
            Capture.load(path)
        assert str(path) in str(e.value)
        return str(e.value)


def use(capture: Capture) -> None:
    """Everything that indexes: it may find nothing, but not fail."""
    samples = len(capture.positions)
    for sample in range(samples):
        assert capture.region(sample).images is not None
        assert capture.grid(sample) is None or len(capture.images[sample]) == 1
    for part in (capture, capture.prompt, capture.generated):
        assert part.efr.shape == capture.efr.shape[:3] + part.positions.shape[1:]
        assert part.image_share.shape == part.efr.shape
        if part.rows is not None:
            assert part.image_rows().shape == (*part.efr.shape, part.image_positions.shape[1])
            assert part.reweighted_rows().shape == part.rows.shape
    assert drift(capture).image_ratio.shape[0] == samples
    masks = [None] * len(capture.regions)
    tokens = relevant_tokens(capture, masks=masks, processor=None)
    assert tokens.shape == capture.image_positions.shape


def refused_or_usable(raw: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "some.safetensors")
        path.write_bytes(raw)
        try:
            loaded = Capture.load(path)
        except ValueError as error:
            said = str(error)
        else:
            use(loaded)
            return
    assert said.startswith(f"path: wanted a file written by Capture.save, got {path} (")
    assert len(said) < 1000


@pytest.mark.parametrize(
    "text",
    ["{}", "[1]", "null", '{"format": 1}', '{"format": 2}', '{"format": null}', "1e999", "NaN", "",
     "{", '"text"', "[" * 100_000, '{"format": ' + "1" * 5000 + "}", '{"format": 1, "format": 1}',
     '{"format": true}', "\ud800"],
)  # fmt: skip
def test_foreign_metadata(text):
    if text == "\ud800":
        text = json.dumps(text)
    said = refusal(save(dict(content()[0]), {KEY: text}))
    assert KEY in said


HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.just(2**63), st.just(-(10**30)), st.floats(),
    st.text(max_size=3), st.lists(st.integers(-2, 9), max_size=5),
    st.lists(st.lists(st.integers(-2, 9), max_size=4), max_size=4),
    st.lists(st.lists(st.tuples(*[st.integers(-1, 20)] * 3, st.none()), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2), st.just([[]] * 3),
)  # fmt: skip


@given(st.data())
@FUZZ
def test_any_value_of_the_metadata_may_be_another(data):
    tensors, about = content()
    changed = json.loads(json.dumps(about))
    places = [(changed, name) for name in changed]
    places += [(region, name) for region in changed["regions"] for name in region]
    places += [(changed["images"][0][0], index) for index in range(4)]
    places += [(changed["regions"][2]["images"], 0), (changed["regions"], 0)]
    holder, key = data.draw(st.sampled_from(places))
    if isinstance(holder, dict) and data.draw(st.integers(0, 4)) == 0:
        del holder[key]
    else:
        holder[key] = data.draw(HOSTILE)
    refused_or_usable(save(dict(tensors), {KEY: json.dumps(changed)}))


@given(st.data())
@FUZZ
def test_any_tensor_may_be_another(data):
    tensors, about = dict(content()[0]), content()[1]
    name = data.draw(st.sampled_from(sorted(tensors)))
    old = tensors[name]
    way = data.draw(st.sampled_from(["dtype", "shape", "value", "gone", "more", "fewer"]))
    if way == "dtype":
        others = [torch.float16, torch.int32, torch.uint8, torch.float64, torch.bool, torch.int64]
        tensors[name] = old.to(data.draw(st.sampled_from(others)))
    elif way == "shape":
        sides = data.draw(st.lists(st.integers(0, 4), max_size=5))
        tensors[name] = torch.zeros(sides, dtype=old.dtype)
    elif way == "value":
        values = [-2, -1, 2**40, 2**62] if not old.is_floating_point() else [torch.nan, torch.inf]
        if old.numel() and old.dtype != torch.bool:
            tensors[name] = old.clone()
            place = data.draw(st.integers(0, old.numel() - 1))
            tensors[name].view(-1)[place] = data.draw(st.sampled_from(values))
    elif way == "gone":
        del tensors[name]
    elif way == "more":
        tensors[data.draw(st.sampled_from(["x", "regions.9.efr", "rows.", ""]))] = old.clone()
    else:
        for other in tensors:
            if tensors[other].dim():
                tensors[other] = tensors[other][:1].contiguous()
    refused_or_usable(save(tensors, {KEY: json.dumps(about)}))


@given(st.data())
@FUZZ
def test_damaged_bytes(data):
    raw = bytearray(save(dict(content()[0]), {KEY: json.dumps(content()[1])}))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        header = 8 + int.from_bytes(raw[:8], "little")
        for _ in range(data.draw(st.integers(1, 4))):
            end = header if data.draw(st.booleans()) else len(raw)
            raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    refused_or_usable(bytes(raw))


def test_what_is_said_names_the_part():
    tensors, about = content()

    def said(**changes) -> str:
        parts = {name.replace("__", "."): value for name, value in changes.items()}
        of_tensors = {n: v for n, v in parts.items() if isinstance(v, torch.Tensor)}
        rest = {n: v for n, v in parts.items() if n not in of_tensors}
        return refusal(save(tensors | of_tensors, {KEY: json.dumps(about | rest)}))

    shape = [*tensors["image_ratio"].shape]
    assert f"gate: wanted {shape}, got [1, 2]" in said(gate=torch.zeros(1, 2, dtype=torch.bool))
    assert "gate: wanted torch.bool, got torch.uint8" in said(gate=tensors["gate"].byte())
    marked = tensors["gate"].byte() + 2
    assert "gate: wanted 0 to 1, got [2, 2]" in said(gate=marked.view(torch.bool))
    huge = torch.zeros(0, 10**12, dtype=torch.int64)
    assert "token_ids: wanted [0, 1000000000000], got [3, 3]" in said(positions=huge)
    assert "copies: wanted a whole number from 1 to" in said(copies=True)
    assert "layers: wanted at least one layer, each once, got [1, 1]" in said(layers=[1, 1])
    assert "focus_weight: wanted a finite number" in said(focus_weight=[float("nan")] * 3)
    assert "regions: wanted one for each 2 of 3 samples, got 3" in said(copies=2)
    assert "prompt_rows: wanted a whole number from 0 to 3, got 4" in said(prompt_rows=4)
    images = [[[0, 17, 0, [4, 4]]], *about["images"][1:]]
    assert "images of sample 0: wanted (start, length, lead, grid) within 16" in said(images=images)
    backwards = tensors["image_positions"].flip(1).contiguous()
    assert "image_positions: wanted ascending positions" in said(image_positions=backwards)
    past = tensors["image_keys"] + 1000
    assert "image_keys: wanted 0 to 22, got [" in said(image_keys=past)
    assert "columns: wanted those of the image, or all" in said(columns=tensors["columns"] + 1)
    assert "model: wanted name, got none" in said(model={"model_type": "llava"})
    inside = torch.tensor([-1])
    assert "regions.0.focus: wanted 0 to" in said(regions__0__focus=inside)


def test_metadata_that_is_not_text_and_other_files(tmp_path):
    header = json.dumps({"__metadata__": {KEY: 5}}).encode()
    refusal(len(header).to_bytes(8, "little") + header)
    refusal((2**63).to_bytes(8, "little"))
    refusal(b"PK\x03\x04" * 100)
    refusal(save({"a": torch.zeros(1)}))
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="path: wanted a file"):
            Capture.load(place)
    shutil.copy(__file__, tmp_path / "text")
    refusal((tmp_path / "text").read_bytes())
