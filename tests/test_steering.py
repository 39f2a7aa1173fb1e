"""From regions to the plan of decode steps: flags, heads, devices, and what changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vrga_ext.config import VRGAConfig
from vrga_ext.gate import Gate
from vrga_ext.plan import GateRun, LayerPlan, build_plan, key_flags
from vrga_ext.prompts.question import QuestionEnd
from vrga_ext.steering import empty_region

CPU = torch.device("cpu")
LAYERS, HEADS, LENGTH = (2, 5), 3, 6
STATIC = VRGAConfig(gamma=1.0, gate="static").head_gate


def region(boosted=(3,), visual=((5, 1),)):
    """Image tokens at 2, 3 and 4."""
    return dataclasses.replace(
        empty_region(QuestionEnd(5, "given"), LAYERS, HEADS),
        image_positions=torch.tensor([2, 3, 4]),
        boosted=torch.tensor(boosted, dtype=torch.long),
        visual_heads=visual,
    )


def plan_of(regions, samples, gate):
    flags = key_flags(regions, samples, LENGTH)
    heads = [regions[s].visual_heads if gate.gate == "static" else None for s in samples]
    return build_plan(flags, [(gate, own) for own in heads], LAYERS, [CPU, CPU], HEADS)


def test_flags_of_each_sequence_are_those_of_its_sample():
    flags = key_flags([region(), region(boosted=())], [1, 0, 0], LENGTH)
    assert flags.tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 1, 3, 1, 0], [0, 0, 1, 3, 1, 0]]


def test_static_plan_names_the_heads_and_the_layers_without_one():
    plan = plan_of([region(), region(visual=())], [0, 1], STATIC)
    assert plan is not None
    assert plan.layers[5].heads.tolist() == [[False, True, False], [False] * 3]
    assert plan.idle == {2}
    assert plan.plan_of(2) is None
    assert plan.plan_of(5).gates == (GateRun(STATIC, 2),)


def test_dynamic_plan_lets_every_head_decide():
    plan = plan_of([region(visual=())], [0], VRGAConfig(gamma=1.0, gate="dynamic").head_gate)
    assert plan is not None
    assert not plan.idle
    assert plan.plan_of(2).heads is None


@pytest.mark.parametrize(
    ("found", "gate"),
    [
        (region(), VRGAConfig(gamma=0.0).head_gate),
        (region(boosted=()), STATIC),
        (region(visual=()), STATIC),
    ],
    ids=["gamma 0", "nothing boosted", "no visual head"],
)
def test_what_changes_nothing_needs_no_plan(found, gate):
    assert plan_of([found], [0], gate) is None


def test_masked_image_needs_no_boosted_token():
    gate = VRGAConfig(gamma=0.0, suppress=0.0, gate="static").head_gate
    assert gate == Gate("static", 1.0, 0.0, gate.min_ratio, gate.entropy_factor)
    assert plan_of([region(boosted=())], [0], gate) is not None


def test_a_plan_follows_its_layer_to_another_device():
    heads = torch.zeros(1, HEADS, dtype=torch.bool)
    plan = LayerPlan(torch.zeros(1, LENGTH, dtype=torch.uint8), heads, (GateRun(STATIC, 1),))
    moved = plan.on(torch.device("meta"))
    assert (moved.flags.device.type, moved.heads.device.type) == ("meta", "meta")
    assert moved.gates is plan.gates
    assert plan._replace(heads=None).on(torch.device("meta")).heads is None
