"""Thresholds: ranges, choices and presets."""

from __future__ import annotations

import dataclasses

import pytest

from vrga_ext import VRGAConfig


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gamma", -0.1, r"gamma: wanted a number in \[0, 10000\], got -0.1"),
        ("gamma", float("nan"), "gamma: wanted a number in"),
        ("efr_percentile", 101, r"efr_percentile: wanted a number in \[0, 100\], got 101"),
        ("ratio_percentile", -1, "ratio_percentile"),
        ("background_weight", float("inf"), "wanted a finite number >= 0, got inf"),
        ("focus_min_tokens", 0, "focus_min_tokens: wanted a finite number >= 1, got 0"),
        ("focus_std", float("-inf"), "focus_std: wanted a finite number, got -inf"),
        ("epsilon", 1.0001, r"epsilon: wanted a number in \[0, 1\], got 1.0001"),
        ("border_max_share", 1.5, "border_max_share"),
        ("gate", "open", r"gate: wanted one of \['static', 'dynamic'\], got 'open'"),
        ("suppress", 1.5, r"suppress: wanted a number in \[0, 1\], got 1.5"),
        ("neighbourhood", "3d", "neighbourhood: wanted one of"),
    ],
)
def test_value_out_of_range_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        VRGAConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("gamma", 1e4), ("efr_percentile", 100), ("border_max_share", 1), ("epsilon", 1)],
)
def test_ends_of_a_range_belong_to_it(field, value):
    assert getattr(VRGAConfig(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [("gamma", "1"), ("gamma", True), ("widen", 1.5), ("border_suppression", 1), ("gate", 3)],
)
def test_wrong_type_is_named(field, value):
    with pytest.raises((TypeError, ValueError), match=f"{field}: wanted"):
        VRGAConfig(**{field: value})


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VRGAConfig().gamma = 2.0


@pytest.mark.parametrize("make", [VRGAConfig().replace, VRGAConfig.paper, VRGAConfig.released])
def test_unknown_override_lists_the_fields(make):
    with pytest.raises(TypeError, match=r"gama: no such field of VRGAConfig; fields: \['gamma'"):
        make(gama=1.0)


def test_presets_differ_where_documented():
    default, paper, released = VRGAConfig(), VRGAConfig.paper(), VRGAConfig.released()
    assert (default.gate, paper.gate, released.gate) == ("static", "static", "dynamic")
    assert paper.widen == 0
    assert not paper.border_suppression
    assert (released.image_span, released.neighbourhood, released.widen) == (
        "vision_span",
        "flat",
        2,
    )
    assert VRGAConfig.released(gamma=2.0).gamma == 2.0


@pytest.mark.parametrize(
    ("config", "weights", "identity"),
    [
        (VRGAConfig(gamma=0.5), (1.5, 1.0), False),
        (VRGAConfig(gamma=0.0), (1.0, 1.0), True),
        (VRGAConfig(gamma=0.0, suppress=0.0), (1.0, 0.0), False),
    ],
)
def test_weights_and_identity(config, weights, identity):
    assert (config.head_gate.focus_weight, config.head_gate.image_weight) == weights
    assert config.is_identity is identity
