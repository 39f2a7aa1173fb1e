"""Loads the compiled operations and registers their fakes, which tracing needs."""

from __future__ import annotations

import importlib.util
import re
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vrga_ext import _checks, _sources
from vrga_ext.gate import Gate


def _load() -> None:
    spec = importlib.util.find_spec("vrga_ext._ops")
    if spec is None or spec.origin is None:
        raise ImportError(
            "vrga_ext has no compiled operations here (a source folder that was never built?); "
            "run `pip install .` in the repository"
        )
    if text := _sources.difference():  # before loading, which other sources may not survive
        warnings.warn(text, stacklevel=2)
    torch.ops.load_library(spec.origin)


_load()

decode_attention: Any = torch.ops.vrga_ext.decode_attention.default
row_statistics: Any = torch.ops.vrga_ext.row_statistics.default
reweighted_softmax: Any = torch.ops.vrga_ext.reweighted_softmax.default


def named(error: RuntimeError) -> Exception:
    """The ValueError of an operation that refused an argument; any other error as it is.

    Parameters
    ----------
    error : RuntimeError
        What an operation raised. Where an argument was refused, its first line ends with
        ``argument: wanted ..., got ...`` behind the place in the C++ source, or is what torch says
        of an argument whose type is not the schema's.

    Returns
    -------
    Exception

    Examples
    --------
    >>> named(RuntimeError("check_heads, checks.cpp:7, heads: wanted [1, 8], got [8]"))
    ValueError('heads: wanted [1, 8], got [8]')
    """
    line = str(error).partition("\n")[0]
    if refusal := re.search(r"\w+: wanted .*", line):
        return ValueError(refusal[0])
    mismatch = re.search(r"type '(.+)' for argument '(\w+)' but instead found type '(.+)'", line)
    if mismatch:
        wanted, argument, got = mismatch.groups()
        return ValueError(f"{argument}: wanted {wanted}, got {got}")
    return error


MIN_CUDA_CAPABILITY = (8, 0)  # bf16 on tensor cores, asynchronous copies; older GPUs lack both
MAX_CUDA_HEAD_DIM = 256


@cache
def _serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a built architecture runs on a GPU: of its major version, or PTX of an older one."""
    built = re.findall(r"(\d+)\.(\d+)\w?(\+PTX)?", architectures)
    if capability < MIN_CUDA_CAPABILITY:
        return False
    for major, minor, ptx in built:
        architecture = (int(major), int(minor))
        if architecture <= capability and (ptx or architecture[0] == capability[0]):
            return True
    return not built  # names such as "Hopper" cannot be compared: the launch decides


@torch.compiler.assume_constant_result  # torch.compile calls it once instead of tracing it
def cuda_unsupported_reason(device: int | None, head_dim: int) -> str:
    """Why the CUDA kernels do not support a head dim on a device; empty if they do.

    Parameters
    ----------
    device
        Index of the CUDA device; the current one without it.
    head_dim
        Largest last dimension of query and value.
    """
    from vrga_ext import _build_info

    built = _build_info.cuda_architectures
    if built == "":
        return "no CUDA kernels (with a CUDA build of torch and nvcc, pip install . builds them)"
    capability = torch.cuda.get_device_capability(device)
    if not _serves(built, capability):
        wanted = ".".join(map(str, capability))
        return f"no kernel for a GPU of compute capability {wanted} (built for {built})"
    if head_dim > MAX_CUDA_HEAD_DIM:
        return f"no CUDA kernel for a head dim of {head_dim} (at most {MAX_CUDA_HEAD_DIM})"
    return ""


@torch.library.register_fake("vrga_ext::decode_attention")
def _decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_flags: Tensor,
    attn_mask: Tensor | None,
    heads: Tensor | None,
    scale: float | None,
    softcap: float,
    *gate: Any,
) -> tuple[Tensor, Tensor]:
    _checks.check_decode(query, key, value, key_flags, attn_mask, heads, softcap, Gate(*gate))
    queries = query.shape[:3]  # [B, Hq, Sq]
    per_head = query.new_empty((*queries, 4), dtype=torch.float32)
    return query.new_empty((*queries, value.shape[3])), per_head


@torch.library.register_fake("vrga_ext::row_statistics")
def _row_statistics(
    query: Tensor,
    key: Tensor,
    key_flags: Tensor,
    attn_mask: Tensor | None,
    scale: float | None,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    _checks.check_rows(query, key, key_flags, attn_mask, softcap)
    heads = query.shape[:2]
    image_attention = query.new_empty((*heads, key_flags.shape[1]), dtype=torch.float32)
    return image_attention, query.new_empty((*heads, 3), dtype=torch.float32)


@torch.library.register_fake("vrga_ext::reweighted_softmax")
def _reweighted_softmax(
    scores: Tensor,
    key_flags: Tensor,
    heads: Tensor | None,
    *gate: Any,
) -> tuple[Tensor, Tensor]:
    _checks.check_softmax(scores, key_flags, heads, Gate(*gate))
    per_head = scores.new_empty((*scores.shape[:3], 4), dtype=torch.float32)
    return scores.new_empty(scores.shape), per_head
