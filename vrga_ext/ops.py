"""The three operations: typed entry to the native kernels.

Same names, arguments and results as :mod:`vrga_ext.reference`, which specifies them. What has no
kernel (float64, say) runs there, with one warning per reason. There is no autograd: a tensor that
requires grad or carries a tangent is refused while grad mode is on.

A kernel takes some hundred microseconds, and a decode step calls one per layer: what stands before
and after the calls is kept short, and arguments are checked once, by the operations themselves.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from vrga_ext import _checks, _library, reference
from vrga_ext.gate import Gate, GateKind
from vrga_ext.reference import DecodeResult, RowResult, SoftmaxResult

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_warned: set[str] = set()


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_flags: Tensor,
    *,
    attn_mask: Tensor | None = None,
    heads: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    gate: GateKind = "dynamic",
    focus_weight: float = 1.5,
    image_weight: float = 1.0,
    min_ratio: float = 0.6,
    entropy_factor: float = 0.2,
) -> DecodeResult:
    """Attention in which gated heads see the question-relevant image keys reweighted.

    One pass over ``key`` and ``value``; no weight of size heads x keys is stored. Arguments and
    results are those of :func:`vrga_ext.reference.decode_attention`.

    Raises
    ------
    ValueError
        Where a shape, dtype, device or value does not fit; the message names the argument, what
        was wanted and what came.

    Examples
    --------
    >>> q, k, v = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 4, 2), torch.eye(4)[None, None]
    >>> flags = torch.tensor([[1, 3, 0, 0]], dtype=torch.uint8)
    >>> result = decode_attention(q, k, v, flags, gate="static", focus_weight=2.0)
    >>> result.output[0, 0, 0], result.gate.item()
    (tensor([0.2000, 0.4000, 0.2000, 0.2000]), True)
    """

    settings = Gate(gate, focus_weight, image_weight, min_ratio, entropy_factor)
    if torch.is_grad_enabled():
        _checks.check_no_grad(query=query, key=key, value=value, attn_mask=attn_mask)
    if has_kernel(query, (query, value)):
        try:
            output, per_head = _library.decode_attention(
                query,
                key,
                value,
                key_flags,
                attn_mask,
                heads,
                scale,
                softcap,
                *settings,
            )
            return DecodeResult(output, per_head)
        except RuntimeError:
            _checks.check_decode(query, key, value, key_flags, attn_mask, heads, softcap, settings)
            raise
    _checks.check_decode(query, key, value, key_flags, attn_mask, heads, softcap, settings)
    return reference.decode_attention(
        query,
        key,
        value,
        key_flags,
        attn_mask=attn_mask,
        heads=heads,
        scale=scale,
        softcap=softcap,
        **settings._asdict(),
    )


def row_statistics(
    query: Tensor,
    key: Tensor,
    key_flags: Tensor,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> RowResult:
    """Statistics and image attention of one query row per sample, for every head.

    Arguments and results are those of :func:`vrga_ext.reference.row_statistics`.

    Raises
    ------
    ValueError
        As :func:`decode_attention`.

    Examples
    --------
    >>> flags = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    >>> result = row_statistics(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4, 2), flags)
    >>> result.image_attention, result.statistics.image_ratio
    (tensor([[[0.0000, 0.2500, 0.2500]]]), tensor([[1.]]))
    """

    if torch.is_grad_enabled():
        _checks.check_no_grad(query=query, key=key, attn_mask=attn_mask)
    if has_kernel(query, (query,)):
        try:
            image_attention, per_head = _library.row_statistics(
                query,
                key,
                key_flags,
                attn_mask,
                scale,
                softcap,
            )
            return RowResult(image_attention, per_head)
        except RuntimeError:
            _checks.check_rows(query, key, key_flags, attn_mask, softcap)
            raise
    _checks.check_rows(query, key, key_flags, attn_mask, softcap)
    return reference.row_statistics(
        query, key, key_flags, attn_mask=attn_mask, scale=scale, softcap=softcap
    )


def reweighted_softmax(
    scores: Tensor,
    key_flags: Tensor,
    *,
    heads: Tensor | None = None,
    gate: GateKind = "dynamic",
    focus_weight: float = 1.5,
    image_weight: float = 1.0,
    min_ratio: float = 0.6,
    entropy_factor: float = 0.2,
) -> SoftmaxResult:
    """Softmax over scores, reweighted in gated heads, for code that needs the weights themselves.

    Arguments and results are those of :func:`vrga_ext.reference.reweighted_softmax`.

    Raises
    ------
    ValueError
        As :func:`decode_attention`.

    Examples
    --------
    >>> flags = torch.tensor([[3, 0, 0]], dtype=torch.uint8)
    >>> scores = torch.zeros(1, 1, 1, 3)
    >>> reweighted_softmax(scores, flags, gate="static", focus_weight=2.0).probabilities
    tensor([[[[0.5000, 0.2500, 0.2500]]]])
    """

    settings = Gate(gate, focus_weight, image_weight, min_ratio, entropy_factor)
    if torch.is_grad_enabled():
        _checks.check_no_grad(scores=scores)
    if has_kernel(scores):
        try:
            probabilities, per_head = _library.reweighted_softmax(
                scores,
                key_flags,
                heads,
                *settings,
            )
            return SoftmaxResult(probabilities, per_head)
        except RuntimeError:
            _checks.check_softmax(scores, key_flags, heads, settings)
            raise
    _checks.check_softmax(scores, key_flags, heads, settings)
    return reference.reweighted_softmax(scores, key_flags, heads=heads, **settings._asdict())


def simd_level(name: str | None = None) -> str:
    """Instruction set of the CPU kernels; with a name, change it for the whole process first.

    ``VRGA_EXT_SIMD`` in the environment chooses the first one; without it that is the best the
    machine has. Names: ``generic``, ``avx2``, ``avx512``, ``avx512_bf16``, ``amx_bf16``.

    Raises
    ------
    ValueError
        If the level is unknown, not compiled in, or cannot run on this machine.

    Examples
    --------
    >>> simd_level() in ("generic", "avx2", "avx512", "avx512_bf16", "amx_bf16")
    True
    """
    try:
        level: str = torch.ops.vrga_ext._simd_level(name or "")
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return level


def has_kernel(tensor: Tensor, vectors: tuple[Tensor, ...] = ()) -> bool:
    """Whether the native operations serve this dtype and device, and the length of these vectors.

    Says once why not.

    Examples
    --------
    >>> has_kernel(torch.zeros(1, dtype=torch.bfloat16))
    True
    """
    if tensor.is_cpu and tensor.dtype in KERNEL_DTYPES:
        return True
    if not tensor.is_floating_point():
        return False  # nothing serves it; the checks before the reference say so
    if tensor.dtype not in KERNEL_DTYPES:
        _warn_once(f"no kernel for {tensor.dtype}; using vrga_ext.reference")
        return False
    reason = f"no kernels for {tensor.device.type}"
    if tensor.device.type == "cuda":
        head_dim = max([v.shape[-1] for v in vectors if v.dim() > 0] + [0])
        reason = _library.cuda_obstacle(tensor.device.index, head_dim)
    if reason:
        _warn_once(f"{reason}; using vrga_ext.reference")
    return reason == ""


@torch.compiler.assume_constant_result  # torch.compile warns while it traces
def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        warnings.warn(f"vrga_ext: {text}", stacklevel=4)
