"""What the operations are measured against, and what each of them ought to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import baselines, loop
from bench.inputs import ENTROPY_FACTOR, FOCUS_WEIGHT, MIN_RATIO, Case, Inputs
from vrga_ext import ops, reference

Run = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Implementation:
    """One implementation.

    Parameters
    ----------
    make
        Returns the callable; an ImportError or ValueError from it is why there is none.
    computes
        ``"dynamic"``, ``"static"``, ``"plain"`` attention, ``"rows"``, ``"softmax"``,
        ``"plain softmax"`` or ``"squares"`` of K and V: what :func:`check` holds it against.
    devices
        Where it runs.
    host_reads
        It waits for results on the host, so that no CUDA graph can hold it.
    moves
        What it has to read or write at least: ``"K+V"``, ``"K"`` or ``"scores"`` (read and
        written once).
    """

    make: Callable[[Case], Run]
    computes: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    host_reads: bool = False
    moves: str = "K+V"


NOT_ENABLED, ADAPTER, RELEASED = "not enabled", "adapter alone (gamma 0)", "released code's way"


def is_ours(name: str) -> bool:
    """Whether an implementation is this package: an error in it is no reason to leave it out."""
    return name.startswith("vrga") or name == ADAPTER


def _plain(run: Run) -> Callable[[Case], Run]:
    return lambda case: run


def _gate(name: str) -> dict[str, Any]:
    return {
        "gate": name,
        "focus_weight": FOCUS_WEIGHT,
        "min_ratio": MIN_RATIO,
        "entropy_factor": ENTROPY_FACTOR,
    }


def _vrga(gate: str) -> Implementation:
    keywords = _gate(gate)

    def run(x: Inputs) -> Tensor:
        return ops.decode_attention(
            x.query, x.key, x.value, x.flags, attn_mask=x.mask, heads=x.heads, **keywords
        ).output

    return Implementation(_plain(run), gate)


def _vrga_off(x: Inputs) -> Tensor:
    """The same kernel without a flag."""
    return ops.decode_attention(x.query, x.key, x.value, x.flags[:, :0], attn_mask=x.mask).output


def _rows(x: Inputs) -> Tensor:
    return ops.row_statistics(x.row, x.key, x.flags).image_attention


def _softmax(gate: str) -> Implementation:
    keywords = _gate(gate)
    return Implementation(
        _plain(lambda x: ops.reweighted_softmax(x.scores, x.flags, **keywords).probabilities),
        "softmax" if gate == "dynamic" else "static softmax",
        moves="scores",
    )


_CPU, _CUDA = ("cpu",), ("cuda",)
LOOP = "per-head loop"
READ = "K and V read, no attention"
TUNED = "PyTorch VRGA, tuned"
STORED = "PyTorch VRGA, weights stored"
DYNAMIC, STATIC, OFF = "vrga dynamic", "vrga static", "vrga off"
PACKED = "SDPA packed"
ROWS = "vrga row_statistics"

DECODE: dict[str, Implementation] = {
    DYNAMIC: _vrga("dynamic"),
    STATIC: _vrga("static"),
    OFF: Implementation(_plain(_vrga_off), "plain"),
    PACKED: Implementation(_plain(baselines.sdpa_packed()), "plain", _CPU),
    "SDPA gqa": Implementation(_plain(baselines.sdpa()), "plain", _CPU),
    "SDPA packed, bias": Implementation(_plain(baselines.sdpa_packed(bias=True)), "static", _CPU),
    "SDPA FLASH": Implementation(_plain(baselines.sdpa("FLASH")), "plain", _CUDA),
    "SDPA FLASH packed": Implementation(_plain(baselines.sdpa_packed("FLASH")), "plain", _CUDA),
    "SDPA cuDNN": Implementation(_plain(baselines.sdpa("CUDNN")), "plain", _CUDA),
    "SDPA EFFICIENT packed": Implementation(
        _plain(baselines.sdpa_packed("EFFICIENT")), "plain", _CUDA
    ),
    "SDPA MATH packed": Implementation(_plain(baselines.sdpa_packed("MATH")), "plain", _CUDA),
    "SDPA EFFICIENT packed, bias": Implementation(
        _plain(baselines.sdpa_packed("EFFICIENT", bias=True)), "static", _CUDA
    ),
    "FlexAttention, bias": Implementation(baselines.flex_attention, "static"),
    "FlashInfer single": Implementation(baselines.flashinfer_single, "plain", _CUDA),
    "FlashInfer paged": Implementation(baselines.flashinfer_paged(False), "plain", _CUDA),
    "FlashInfer paged, tensor cores": Implementation(
        baselines.flashinfer_paged(True), "plain", _CUDA
    ),
    "FlashAttention-3": Implementation(baselines.flash_attention_3, "plain", _CUDA),
    STORED: Implementation(_plain(baselines.stored_as_written), "dynamic"),
    TUNED: Implementation(_plain(baselines.stored_tuned), "dynamic"),
    LOOP: Implementation(_plain(loop.decode_attention), "dynamic", host_reads=True),
    READ: Implementation(_plain(baselines.read_only), "squares", _CPU),
}
ROW_STATISTICS: dict[str, Implementation] = {
    ROWS: Implementation(_plain(_rows), "rows", moves="K"),
    DYNAMIC: DECODE[DYNAMIC],
    "PyTorch, weights stored": Implementation(_plain(baselines.stored_rows), "rows", moves="K"),
    LOOP: Implementation(_plain(loop.row_statistics), "rows", host_reads=True, moves="K"),
}
REWEIGHTED_SOFTMAX: dict[str, Implementation] = {
    DYNAMIC: _softmax("dynamic"),
    STATIC: _softmax("static"),
    "torch.softmax": Implementation(
        _plain(lambda x: torch.softmax(x.scores, -1, dtype=torch.float32).to(x.scores.dtype)),
        "plain softmax",
        moves="scores",
    ),
    TUNED: Implementation(_plain(baselines.stored_softmax), "softmax", moves="scores"),
    LOOP: Implementation(
        _plain(loop.reweighted_softmax), "softmax", host_reads=True, moves="scores"
    ),
}


def check(implementation: Implementation, x: Inputs, result: Tensor) -> float:
    """Error against the reference in fp64, relative to the largest value.

    Raises
    ------
    AssertionError
        Beyond eight times the dtype's precision, or 1e-5 (1e-4 of ``"squares"``): what is wrong
        is not timed.
    """
    expected = _expected(implementation.computes, x)
    largest = expected.abs().max().item()
    error = (result.double() - expected).abs().max().item() / largest
    # A sum of millions of squares in fp32 keeps fewer digits than any attention does.
    floor = 1e-4 if implementation.computes == "squares" else 1e-5
    tolerance = max(8 * torch.finfo(x.query.dtype).eps, floor)
    assert error <= tolerance, f"error {error:.3g} against fp64, wanted at most {tolerance:.3g}"
    return error


def _expected(computes: str, x: Inputs) -> Tensor:
    if computes == "squares":
        words = torch.stack([x.key, x.value]).view(torch.float32)
        return words.double().square().sum()
    q, k, v, scores = (t.double() for t in (x.query, x.key, x.value, x.scores))
    if computes == "plain softmax":
        return torch.softmax(scores, -1)
    if computes == "rows":
        return reference.row_statistics(q[:, :, 0], k, x.flags).image_attention
    if computes.endswith("softmax"):
        keywords = _gate("static" if computes == "static softmax" else "dynamic")
        result = reference.reweighted_softmax(scores, x.flags, **keywords)
        return result.probabilities
    if computes == "plain":
        return reference.decode_attention(q, k, v, x.flags[:, :0], attn_mask=x.mask).output
    keywords = _gate(computes) | {"attn_mask": x.mask, "heads": x.heads}
    return reference.decode_attention(q, k, v, x.flags, **keywords).output
