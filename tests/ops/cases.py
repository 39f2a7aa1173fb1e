"""Inputs for the operations, and the comparison with the reference in fp64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vrga_ext import ops, reference
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# How far fp32 arithmetic may move a statistic, relative to 1 + its size.
STATISTICS_TOLERANCE = 1e-5
FLOAT32_ULPS = 3.0
SOFTCAP_ULPS = 3.0  # the same with a soft-cap, where tanh rounds as well
# Gate decisions are compared where the reference is farther than this from its thresholds; at most
# this share of the rows may be closer.
GATE_MARGIN = 1e-4
GATE_BAND_SHARE = 0.02

IMAGE_SETS = ("empty", "full", "first", "last", "middle", "scattered", "short", "none", "odd")


def make_flags(kind: str, batch: int, keys: int, generator: torch.Generator) -> Tensor:
    """uint8 [B, N]: where the image is, with a few question-relevant keys in it."""
    flags = torch.zeros(batch, keys, dtype=torch.uint8)
    spans = {
        "full": slice(0, keys),
        "first": slice(0, 1),
        "last": slice(keys - 1, keys),
        "middle": slice(keys // 4, keys // 4 + (keys + 1) // 2),
        "short": slice(0, keys // 2),
        "odd": slice(0, 0),
    }
    if kind in spans:
        flags[:, spans[kind]] = IMAGE_FLAG
    if kind == "scattered":
        flags[torch.rand(batch, keys, generator=generator) < 0.4] = IMAGE_FLAG
    focus = torch.rand(batch, keys, generator=generator) < 0.2
    if kind == "odd":  # question-relevant without being an image key: reweighted, not counted
        flags[focus] = FOCUS_FLAG
    flags[focus & (flags == IMAGE_FLAG)] |= FOCUS_FLAG
    if kind == "none":
        return flags[:, :0]
    return flags[:, : max(1, keys // 2)] if kind == "short" else flags


def make_mask(
    kind: str, shape: tuple[int, int, int, int], generator: torch.Generator
) -> Tensor | None:
    """One of the layouts and dtypes an attention mask comes in; some rows attend to nothing."""
    batch, heads, rows, keys = shape
    if kind == "none":
        return None
    if kind == "padding":  # bool, one row per sample: left padding, an unused tail
        mask = torch.ones(batch, 1, 1, keys, dtype=torch.bool)
        mask[..., : keys // 5] = False
        mask[..., keys - keys // 3 :] = False
        mask[-1] = batch == 1
        return mask
    if kind == "causal":  # bool, one row per query row
        return torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    keep = torch.rand(batch, heads, rows, keys, generator=generator) < 0.7
    keep[:, -1] = False
    if kind == "heads":
        return keep
    bias = torch.randn(batch, heads, rows, keys, generator=generator)
    if kind == "bias":
        return bias.masked_fill(~keep, -torch.inf)
    if kind == "strided":  # every second key of a wider mask, heads expanded
        wide = (
            bias[:, :1]
            .repeat_interleave(2, -1)
            .masked_fill(~keep[:, :1].repeat_interleave(2, -1), -torch.inf)
        )
        return wide[..., ::2].expand(shape)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}[kind]
    lowest = torch.finfo(dtype).min
    return bias[:, :1].to(dtype).masked_fill(~keep[:, :1], lowest)


MASKS = ("none", "padding", "causal", "heads", "bias", "strided", "bfloat16", "float16", "float64")


@dataclass
class Case:
    """Arguments of one call of ``decode_attention``, at any dtype."""

    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        cast = {
            name: t.to(dtype) if name in ("query", "key", "value") else t
            for name, t in self.tensors.items()
        }
        return cast | self.options


def attention_case(
    *,
    batch: int = 1,
    heads_kv: int = 2,
    group: int = 4,
    rows: int = 1,
    keys: int = 130,
    dim: int = 64,
    dim_v: int | None = None,
    flags: str = "middle",
    mask: str = "none",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options: Any,
) -> Case:
    """Heads differ in how much they look at the image, so that a dynamic gate has both answers."""
    generator = torch.Generator().manual_seed(seed)
    heads = heads_kv * group

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    key_flags = make_flags(flags, batch, keys, generator)
    query, key = normal(batch, heads, rows, dim), normal(batch, heads_kv, keys, dim)
    value = normal(batch, heads_kv, keys, dim if dim_v is None else dim_v)
    is_image = torch.zeros(batch, keys)
    is_image[:, : key_flags.shape[1]] = (key_flags & IMAGE_FLAG).float()
    axis = torch.nn.functional.normalize(normal(dim), dim=0)
    key += 2.0 * is_image[:, None, :, None] * axis
    query += dim**0.5 * torch.linspace(-1.0, 1.5, heads)[None, :, None, None] * axis
    tensors = {
        "query": query.to(dtype),
        "key": key.to(dtype),
        "value": value.to(dtype),
        "key_flags": key_flags,
    }
    attn_mask = make_mask(mask, (batch, heads, rows, keys), generator)
    if attn_mask is not None:
        tensors["attn_mask"] = attn_mask
    if options.pop("some_heads", False):
        tensors["heads"] = torch.arange(heads)[None].expand(batch, -1) % 3 != 1
    return Case(tensors, options)


def max_error(actual: Tensor, expected: Tensor) -> float:
    """Largest distance; NaN and infinities must sit in the same places."""
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    distance = (actual - expected).abs().nan_to_num(0.0)
    return distance.max().item() if distance.numel() else 0.0


def check_accuracy(
    actual: Tensor, torch_run: Tensor, expected: Tensor, softcap: float = 0.0
) -> None:
    """At most twice the error of plain PyTorch in the same dtype, plus a quarter of an ulp.

    Of fp32 ``FLOAT32_ULPS`` or ``SOFTCAP_ULPS``: how PyTorch rounds depends on the processor, and
    it may be lucky.
    """
    scale = expected.nan_to_num(0.0).abs().max().item() if expected.numel() else 0.0
    float32_ulps = SOFTCAP_ULPS if softcap else FLOAT32_ULPS
    ulps = float32_ulps if actual.dtype == torch.float32 else 0.25
    floor = ulps * torch.finfo(actual.dtype).eps * scale
    allowed = 2.0 * max_error(torch_run, expected) + floor
    error = max_error(actual, expected)
    assert error <= allowed, f"error {error:.3g} of at most {allowed:.3g}"


def check_statistics(actual: Any, expected: Any, tolerance: float = STATISTICS_TOLERANCE) -> None:
    for name, a, e in zip(expected._fields, actual, expected, strict=True):
        assert a.dtype == torch.float32
        error = max_error(a / (1 + e.abs()), e / (1 + e.abs()))
        assert error <= tolerance, f"{name}: error {error:.3g} of at most {tolerance:.3g}"


def gate_margin(statistics: Any, options: dict[str, Any]) -> Tensor:
    """How far the statistics of each row may move before its gate changes [B, Hq, Sq]."""
    ratio = statistics.image_ratio
    other = options.get("entropy_factor", 0.2) * statistics.joint_entropy
    # Open if both differences are positive: the smaller one decides.
    margin = torch.minimum(ratio - options.get("min_ratio", 0.6), ratio - other).abs()
    # Rows without image keys are closed by definition, and NaN rows by comparison.
    return torch.where((ratio == 0) | ratio.isnan(), torch.inf, margin)


def check_gate(actual: Any, expected: Any, options: dict[str, Any]) -> Tensor:
    """Equal outside the band; returns where the gates agree [B, Hq, Sq]."""
    if options.get("gate", "dynamic") == "static":
        assert torch.equal(actual.gate, expected.gate)
        return torch.ones_like(actual.gate)
    inside = gate_margin(expected.statistics, options) <= GATE_MARGIN * (
        1 + expected.statistics.image_ratio.nan_to_num(0.0)
    )
    assert torch.equal(actual.gate[~inside], expected.gate[~inside])
    assert inside.float().mean() <= GATE_BAND_SHARE
    return actual.gate == expected.gate


def check_decode(case: Case, dtype: torch.dtype, tolerance: float = STATISTICS_TOLERANCE) -> Any:
    """Native against reference in fp64; returns the native result."""
    arguments = case.arguments(dtype)
    actual = ops.decode_attention(**arguments)
    torch_run = reference.decode_attention(**arguments)
    expected = reference.decode_attention(**case.arguments(torch.float64))
    assert actual.output.dtype == dtype
    assert actual.output.is_contiguous()
    check_statistics(actual.statistics, expected.statistics, tolerance)
    agree = check_gate(actual, expected, case.options)
    agree &= torch_run.gate == expected.gate
    keep = agree[..., None]
    outputs = (result.output * keep for result in (actual, torch_run, expected))
    check_accuracy(*outputs, softcap=case.options.get("softcap", 0.0))
    return actual
