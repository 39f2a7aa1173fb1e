"""``VRGAConfig.released()`` against recordings of the authors' code, its one defect repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

import vrga_ext
from tests.adapter.families import greedy, logits
from vrga_ext import ops

RECORDINGS = sorted((Path(__file__).parents[1] / "data" / "oracle").iterdir())


class Run(NamedTuple):
    recorded: dict[str, np.ndarray]
    case: dict[str, Any]
    region: vrga_ext.Region
    output: Any
    decoded: list[Any]  # a DecodeResult per step and layer


@pytest.fixture(scope="module", params=RECORDINGS, ids=lambda path: path.name)
def run(request) -> Run:
    recorded = dict(np.load(request.param / "recording.npz"))
    case = json.loads((request.param / "case.json").read_text())
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        request.param, dtype=torch.float32
    ).eval()
    inputs = {
        name: torch.from_numpy(recorded[name])
        for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    }
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == case["image_token_id"]).int()
    decoded: list[Any] = []
    original = ops.decode_attention

    def recording(*args, **kwargs):
        decoded.append(original(*args, **kwargs))
        return decoded[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "decode_attention", recording)
        config = vrga_ext.VRGAConfig.released()
        with vrga_ext.enable(model, config, question_end=case["row"]) as handle:
            output = greedy(model, inputs, case["steps"] + 1)
    plain = greedy(model, inputs, case["steps"] + 1)
    np.testing.assert_array_equal(plain.sequences[0, -9:], recorded["plain_tokens"])
    np.testing.assert_allclose(logits(plain)[:, 0], recorded["plain_logits"], atol=1e-4)
    return Run(recorded, case, handle.regions[0], output, decoded)


def test_head_statistics(run):
    for name, ours in (
        ("R", run.region.image_ratio),
        ("H", run.region.image_entropy),
        ("EFR", run.region.efr),
    ):
        np.testing.assert_allclose(ours, run.recorded[name], rtol=1e-4, err_msg=name)


def test_selected_and_background_heads(run):
    for name, ours in (
        ("selected", run.region.visual_heads),
        ("background", run.region.background_heads),
    ):
        assert list(ours) == [tuple(pair) for pair in np.argwhere(run.recorded[name]).tolist()]


def test_refined_map_and_focus(run):
    np.testing.assert_allclose(run.region.refined_map, run.recorded["refined"], atol=1e-6)
    np.testing.assert_array_equal(run.region.focus, run.recorded["fixed_focus"])
    np.testing.assert_array_equal(run.region.boosted, run.recorded["fixed_boost"])


def test_gated_heads_of_every_step_and_layer(run):
    steps, layers, heads = run.recorded["fixed_gated"].shape
    gates = torch.stack([result.gate[0, :, 0] for result in run.decoded]).view(steps, layers, heads)
    np.testing.assert_array_equal(gates, run.recorded["fixed_gated"])
    for name, index in (("fixed_R_dec", 0), ("fixed_Hraw_dec", 2)):
        ours = torch.stack([result.statistics[index][0, :, 0] for result in run.decoded])
        np.testing.assert_allclose(
            ours.view(steps, layers, heads), run.recorded[name], rtol=1e-4, atol=1e-6, err_msg=name
        )


def test_tokens_and_logits(run):
    new = run.output.sequences[0, -len(run.recorded["fixed_tokens"]) :]
    np.testing.assert_array_equal(new, run.recorded["fixed_tokens"])
    np.testing.assert_allclose(logits(run.output)[:, 0], run.recorded["fixed_logits"], atol=1e-4)
    assert np.abs(run.recorded["fixed_logits"] - run.recorded["plain_logits"]).max() > 0.1
