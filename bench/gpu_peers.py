"""What a decode step on a GPU is measured against: what is importable, and why the rest is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vrga_ext import ops, reference

FOCUS_WEIGHT = 1.5


@dataclass(frozen=True)
class Call:
    """One set of inputs; a benchmark rotates through many."""

    query: Tensor  # [B, Hq, 1, D]
    key: Tensor  # [B, Hkv, M, D]
    value: Tensor  # [B, Hkv, M, D]
    flags: Tensor  # uint8 [B, M]
    bias: Tensor  # [B, 1, 1, M], ln(weight): what a static gate amounts to


Run = Callable[[Call], Any]


def vrga(gate: str) -> Run:
    def run(call: Call) -> Any:
        result = ops.decode_attention(call.query, call.key, call.value, call.flags, gate=gate)
        return result.output

    return run


def vrga_off(call: Call) -> Tensor:
    """The same kernel without a flag."""
    return ops.decode_attention(call.query, call.key, call.value, call.flags[:, :0]).output


def rows(call: Call) -> Tensor:
    return ops.row_statistics(call.query[:, :, 0], call.key, call.flags).image_attention


def eager(call: Call) -> Tensor:
    """VRGA with stored weights: plain PyTorch."""
    return reference.decode_attention(call.query, call.key, call.value, call.flags).output


def sdpa(backend: SDPBackend, with_bias: bool = False) -> Run:
    def run(call: Call) -> Tensor:
        mask = call.bias.expand(-1, call.query.shape[1], -1, -1) if with_bias else None
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(
                call.query, call.key, call.value, attn_mask=mask, enable_gqa=True
            )

    return run


def sdpa_packed(backend: SDPBackend) -> Run:
    """The group as query rows: K and V are read once."""

    def run(call: Call) -> Tensor:
        batch, heads, _, dim = call.query.shape
        packed = call.query.reshape(batch, call.key.shape[1], -1, dim)
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(packed, call.key, call.value)
        return output.reshape(batch, heads, 1, dim)

    return run


def flex() -> Run:
    """FlexAttention with the bias of a static gate."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def run(call: Call) -> Any:
        bias = call.bias[:, 0, 0]

        def add_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + bias[b, k]

        return compiled(call.query, call.key, call.value, score_mod=add_bias, enable_gqa=True)

    return run


def flashinfer() -> Run:
    """Single-sample decode on tensor cores."""
    import flashinfer  # type: ignore[import-not-found]

    def run(call: Call) -> Any:
        output = flashinfer.single_decode_with_kv_cache(
            call.query[0, :, 0],
            call.key[0],
            call.value[0],
            kv_layout="HND",
            use_tensor_cores=True,
        )
        return output[None, :, None]

    return run


def flash_attention_3() -> Run:
    from flash_attn_interface import (  # type: ignore[import-not-found]
        flash_attn_with_kvcache,
        get_scheduler_metadata,
    )

    plans: dict[Any, Any] = {}

    def run(call: Call) -> Any:
        batch, heads, _, dim = call.query.shape
        shape = (batch, heads, call.key.shape[1], call.key.shape[2])
        if shape not in plans:
            lengths = torch.full((batch,), shape[3], dtype=torch.int32, device=call.query.device)
            plan = get_scheduler_metadata(
                batch, 1, shape[3], heads, shape[2], dim, lengths, torch.bfloat16
            )
            plans[shape] = (lengths, plan)
        lengths, plan = plans[shape]
        output = flash_attn_with_kvcache(
            call.query.transpose(1, 2),
            call.key.transpose(1, 2),
            call.value.transpose(1, 2),
            cache_seqlens=lengths,
            scheduler_metadata=plan,
        )
        return output.transpose(1, 2)

    return run


def implementations(batch: int) -> tuple[dict[str, Run], dict[str, str]]:
    """Callables by name, and the reason for every one that is missing."""
    found: dict[str, Run] = {
        "vrga dynamic": vrga("dynamic"),
        "vrga static": vrga("static"),
        "vrga off": vrga_off,
        "row_statistics": rows,
        "sdpa FLASH": sdpa(SDPBackend.FLASH_ATTENTION),
        "sdpa FLASH packed": sdpa_packed(SDPBackend.FLASH_ATTENTION),
        "sdpa cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        "sdpa EFFICIENT packed": sdpa_packed(SDPBackend.EFFICIENT_ATTENTION),
        "sdpa EFFICIENT bias": sdpa(SDPBackend.EFFICIENT_ATTENTION, with_bias=True),
        "eager": eager,
    }
    missing: dict[str, str] = {}
    optional: dict[str, Callable[[], Run]] = {"flex bias": flex, "fa3": flash_attention_3}
    if batch == 1:
        optional["flashinfer"] = flashinfer
    else:
        missing["flashinfer"] = "its batched decode needs a paged cache; measured at B=1 only"
    for name, make in optional.items():
        try:
            found[name] = make()
        except ImportError as error:
            missing[name] = str(error)
    return found, missing


# Output to expect: plain attention, or attention with the static gate.
STATIC = {"vrga static", "sdpa EFFICIENT bias", "flex bias"}
PLAIN = {"vrga off", "sdpa FLASH", "sdpa FLASH packed", "sdpa cuDNN", "sdpa EFFICIENT packed"}
PLAIN |= {"fa3", "flashinfer"}


def check(name: str, output: Tensor, call: Call) -> float:
    """Largest error against fp64, relative to the largest value; raises beyond 2 %."""
    if name == "row_statistics":
        expected = reference.row_statistics(
            call.query[:, :, 0].double(), call.key.double(), call.flags
        ).image_attention
    else:
        gate = "static" if name in STATIC else "dynamic"
        flags = call.flags[:, :0] if name in PLAIN else call.flags
        expected = reference.decode_attention(
            call.query.double(), call.key.double(), call.value.double(), flags, gate=gate
        ).output
    error = (output.double() - expected).abs().max().item() / expected.abs().max().item()
    if not error < 0.02:
        raise ValueError(f"{name}: error {error:.3g} against fp64")
    return error


def static_bias(flags: Tensor, dtype: torch.dtype) -> Tensor:
    """ln(1 + gamma) on focus tokens [B, 1, 1, M]."""
    boosted = (flags & reference.FOCUS_FLAG) != 0
    return (boosted * math.log(FOCUS_WEIGHT)).to(dtype)[:, None, None, :]
