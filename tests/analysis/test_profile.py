"""Head profiles: what they count, how they rank, their files, and which models they fit."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
import torch

import vrga_ext
from tests.adapter.families import ROWS, build, greedy
from vrga_ext import Capture, VRGAConfig, VRGAWarning, analysis
from vrga_ext.analysis import HeadProfile
from vrga_ext.model_identity import ModelIdentity

LOOSE = VRGAConfig(efr_percentile=40, ratio_percentile=60)
REFUSED = r"path: wanted a file written by HeadProfile\.save"
MODEL = ModelIdentity("qwen2_5_vl", 9, 3, "some/name", "abc")


@pytest.fixture(scope="module")
def captures():
    """Four prompts with an image and one without, in two batches."""
    family = build("qwen2_5_vl")
    found = []
    for rows in (ROWS, [ROWS[0], [5, 6, 7]]):
        inputs = family.prompt(*rows)
        last = inputs["input_ids"].shape[1] - 1
        with vrga_ext.capture(
            family.model, rows=True, prompt_rows=[last - 1, last], question_end=last
        ) as recording:
            greedy(family.model, inputs, 2, num_beams=2)
        found.append(recording.last)
    return found


@pytest.fixture
def profile():
    return HeadProfile(
        layers=(2, 5),
        prompts=4,
        selected=torch.tensor([[1, 0, 4], [1, 0, 0]]),
        mean_efr=torch.tensor([[2.0, math.nan, 9.0], [1.0, 3.0, 0.5]], dtype=torch.float64),
        mean_rrar=torch.tensor([[1.0, math.nan, 2.0], [0.0, 1.5, 0.1]], dtype=torch.float64),
        model=MODEL,
    )


def question(capture: Capture) -> Capture:
    """The last token's row of every prompt with an image: it was the second one asked for."""
    seen = [len(region.image_positions) > 0 for region in capture.regions]
    samples = torch.arange(0, len(capture.positions), capture.copies)[torch.tensor(seen)]
    part = capture.select(slice(1, 2))
    names = ("image_ratio", "image_entropy", "image_keys", "attended", "image_positions", "rows")
    return replace(part, **{name: getattr(part, name)[samples] for name in names})


def third(capture: Capture) -> torch.Tensor:
    """A region: every third image token of each sample."""
    image = capture.image_positions >= 0
    return image & (image.cumsum(1) % 3 == 0)


def test_what_is_counted(captures):
    tokens = [third(capture) for capture in captures]
    found = analysis.head_profile(iter(captures), tokens, config=LOOSE)
    parts = [question(capture) for capture in captures]
    assert found.prompts == 4
    assert found.layers == captures[0].layers
    wanted = torch.zeros_like(found.selected)
    for part in parts:
        for heads in analysis.focused_heads(part, LOOSE):
            wanted += analysis.head_mask(heads, found.layers, 4)
    assert wanted.any()
    assert torch.equal(found.selected, wanted)
    efr = torch.cat([part.efr[..., 0] for part in parts]).double().mean(0)
    torch.testing.assert_close(found.mean_efr, efr, rtol=1e-5, atol=0)
    ratios = [
        analysis.rrar(capture, own, reweighted=False)[:: capture.copies, ..., 1]
        for capture, own in zip(captures, tokens, strict=True)
    ]
    torch.testing.assert_close(found.mean_rrar, torch.cat(ratios).double().nanmean(0))
    assert found.model == captures[0].model == ModelIdentity("qwen2_5_vl", 3, 4)


def test_captures_without_a_region(captures):
    tokens = third(captures[0])
    both = analysis.head_profile(captures, [tokens, None])
    one = analysis.head_profile(captures[0], tokens)
    assert (both.prompts, one.prompts) == (4, 3)
    torch.testing.assert_close(both.mean_rrar, one.mean_rrar)
    assert analysis.head_profile(captures).mean_rrar is None


def test_what_cannot_be_profiled(captures):
    first, tokens = captures[0], third(captures[0])
    other = replace(first, model=replace(first.model, name="another"))
    blind = replace(first, regions=tuple(replace(region, layers=(7,)) for region in first.regions))
    for given, message in (
        ([], "captures: wanted at least one prompt with an image, got none"),
        ([first, other], r"captures: wanted some of one model, got \[ModelIdentity"),
        ([first, blind], r"captures: wanted some of one model, got layers \[\(0, 1, 2\), \(7,\)\]"),
    ):
        with pytest.raises(ValueError, match=message):
            analysis.head_profile(given)
    with pytest.raises(ValueError, match="tokens: wanted one entry per capture"):
        analysis.head_profile(captures, [tokens])
    with pytest.raises(ValueError, match="tokens: wanted captures of the question"):
        analysis.head_profile(first.generated, tokens)
    with pytest.raises(ValueError, match="rows: wanted a capture made with rows=True"):
        analysis.head_profile(replace(first, rows=None, columns=None), tokens)


def test_ranking(profile):
    """By count, then by EFR; a head without one comes last."""
    assert profile.top(6) == ((2, 2), (5, 0), (2, 0), (5, 2), (5, 1), (2, 1))
    assert profile.top() == profile.top(2)  # 6 in 4 prompts
    for n in (0, 7, 1.5):
        with pytest.raises(ValueError, match=f"n: wanted 1 to 6 heads, got {n}"):
            profile.top(n)


def test_another_model_is_refused_and_other_weights_are_said(profile, recwarn):
    profile.check_model(MODEL)
    assert not recwarn
    for change in ({"model_type": "llava"}, {"num_layers": 8}, {"num_heads": None}):
        ((name, value),) = change.items()
        message = f"heads: wanted a profile of a model with {name} {value!r}, got one with"
        with pytest.raises(ValueError, match=message):
            profile.check_model(replace(MODEL, **change))
    with pytest.warns(VRGAWarning, match="with name 'some/name', not 'some/tuned'"):
        profile.check_model(replace(MODEL, name="some/tuned"))
    with pytest.warns(VRGAWarning, match="with revision 'abc', not 'def'"):
        profile.check_model(replace(MODEL, revision="def"))
    with pytest.warns(VRGAWarning, match="does not tell which model"):
        replace(profile, model=None).check_model(MODEL)


# ---- files ---------------------------------------------------------------------------------------


def test_profiles_come_back(profile, captures, tmp_path):
    bare = replace(profile, mean_rrar=None, model=None)
    for written in (profile, bare, analysis.head_profile(captures)):
        written.save(tmp_path / "profile.json")
        read = HeadProfile.load(str(tmp_path / "profile.json"))
        for field in fields(HeadProfile):
            ours, theirs = getattr(read, field.name), getattr(written, field.name)
            if isinstance(theirs, torch.Tensor):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
            else:
                assert ours == theirs
    with pytest.raises(OSError, match="path: wanted a file to write to"):
        profile.save(tmp_path / "none" / "profile.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vrga_head_profile": 2}, "vrga_head_profile: wanted format 1, got another or none"),
        ({"layers": [2, 2]}, "layers: wanted at least one layer, each once, got [2, 2]"),
        ({"layers": [2]}, "selected: wanted a list of 1, got"),
        ({"prompts": 3}, "selected: wanted a whole number from 0 to 3, got 4"),
        ({"prompts": True}, "prompts: wanted a whole number from 1 to"),
        ({"selected": [[], []]}, "selected: wanted at least one head"),
        ({"selected": [[1, 0, 4], [1, 0]]}, "selected: wanted a list of 3, got [1, 0]"),
        ({"mean_efr": None}, "mean_efr: wanted a list of 2, got None"),
        ({"mean_rrar": [[1, 2, math.inf]] * 2}, "mean_rrar: wanted a finite number of at least 0"),
        ({"model": [1]}, "model: wanted an object, got [1]"),
        ({"model": {"model_type": "llava"}}, "model: wanted name, got none"),
        ({"more": 1}, "content: wanted only names of its format, got 'more'"),
    ],
)
def test_files_that_are_no_profile(profile, tmp_path, change, message):
    path = tmp_path / "profile.json"
    profile.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=REFUSED) as error:
        HeadProfile.load(path)
    assert message in str(error.value)


def test_other_files(tmp_path):
    for content in (b"", b"[1]", b"\xff", b'{"layers": 1}'):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ValueError, match=REFUSED):
            HeadProfile.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=REFUSED):
        HeadProfile.load(tmp_path)
