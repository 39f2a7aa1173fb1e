"""The three operations: typed entry to the native kernels.

:mod:`vrga_ext.reference` specifies them and has the same names, arguments and results. It also
serves dtypes and devices without a kernel, float64 for example; each reason warns once. There is no
autograd: in grad mode a tensor that requires grad or carries a tangent raises ValueError.

A kernel takes some hundred microseconds, and a decode step calls one per layer. The code around the
calls is therefore short, and the compiled operations check the arguments.
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

    One pass over ``key`` and ``value``; no weight of size heads x keys is stored.

    Parameters
    ----------
    query : floating [B, Hq, Sq, D]
        Sq queries of each sample.
    key : floating [B, Hkv, Skv, D]
        In the dtype of ``query``. Hq is a multiple of Hkv; query head h reads KV head
        ``h // (Hq // Hkv)``.
    value : floating [B, Hkv, Skv, Dv]
        In the dtype of ``query``.
    key_flags : uint8 [B, N], N <= Skv
        Bit 0: the key is an image token (V). Bit 1: it is question-relevant (T_q). Keys beyond N
        have no flag.
    attn_mask : bool or floating, broadcastable to [B, Hq, Sq, Skv], optional
        ``True`` attends. A floating mask is added to the scores, and masks the key at or below the
        lowest finite value of its dtype. Without a mask every query attends to every key; no
        causality is implied.
    heads : bool [B, Hq], optional
        Heads that may be reweighted; all of them without it.
    scale : float, optional
        Factor of the scores; ``D ** -0.5`` without it.
    softcap : float
        Scores become ``softcap * tanh(score / softcap)`` before the mask is added; 0 is off.
    gate : {"static", "dynamic"}
        ``"static"``: all of ``heads`` are gated. ``"dynamic"``: those of them with
        ``R_img > min_ratio`` and ``R_img > entropy_factor * H_joint`` at the query.
    focus_weight : float
        Weight of question-relevant keys in a gated head; no unit, at least 0, finite in float32.
    image_weight : float
        Weight of the other image keys in a gated head; no unit, as ``focus_weight``. A head that
        would keep less than 2^-100 of its attention is not reweighted.
    min_ratio : float
        Threshold of ``"dynamic"`` on R_img (no unit).
    entropy_factor : float
        Threshold of ``"dynamic"`` on R_img per nat of H_joint (1 / nat).

    Returns
    -------
    DecodeResult
        Output in the query's dtype, statistics, and the gate. The statistics are 0 without an
        attended image key, or with a share below 2^-100 on them; the output is 0 as well where a
        query attends to no key. A key to which no query of its sample and KV head attends
        contributes nothing, whatever ``key`` and ``value`` hold there.

    Raises
    ------
    ValueError
        A shape, dtype, device or value does not fit, or a tensor requires grad or carries a tangent
        in grad mode; the message names the argument, what was wanted and what came.

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
        except RuntimeError as error:
            raise _library.named(error) from None
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
    """Statistics and image attention of one query per sample, for every head.

    One pass over ``key``, beside the model's own attention.

    Parameters
    ----------
    query : floating [B, Hq, D]
        One query of each sample.
    key : floating [B, Hkv, Skv, D]
        In the dtype of ``query``. Hq is a multiple of Hkv; query head h reads KV head
        ``h // (Hq // Hkv)``.
    key_flags : uint8 [B, N], N <= Skv
        Bit 0: the key is an image token (V). Bit 1: it is question-relevant (T_q). Keys beyond N
        have no flag.
    attn_mask : bool or floating, broadcastable to [B, Hq, 1, Skv], optional
        ``True`` attends. A floating mask is added to the scores, and masks the key at or below the
        lowest finite value of its dtype. Without a mask every query attends to every key; no
        causality is implied.
    scale : float, optional
        Factor of the scores; ``D ** -0.5`` without it.
    softcap : float
        Scores become ``softcap * tanh(score / softcap)`` before the mask is added; 0 is off.

    Returns
    -------
    RowResult
        Attention on each image key [B, Hq, N], and the statistics [B, Hq], which are 0 as in
        :func:`decode_attention`.

    Raises
    ------
    ValueError
        A shape, dtype, device or value does not fit, or a tensor requires grad or carries a tangent
        in grad mode; the message names the argument, what was wanted and what came.

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
        except RuntimeError as error:
            raise _library.named(error) from None
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

    Parameters
    ----------
    scores : floating [B, Hq, Sq, Skv]
        Scaled scores; a key is masked at or below the lowest finite value of the dtype.
    key_flags : uint8 [B, N], N <= Skv
        Bit 0: the key is an image token (V). Bit 1: it is question-relevant (T_q). Keys beyond N
        have no flag.
    heads : bool [B, Hq], optional
        Heads that may be reweighted; all of them without it.
    gate : {"static", "dynamic"}
        ``"static"``: all of ``heads`` are gated. ``"dynamic"``: those of them with
        ``R_img > min_ratio`` and ``R_img > entropy_factor * H_joint`` at the query.
    focus_weight : float
        Weight of question-relevant keys in a gated head; no unit, at least 0, finite in float32.
    image_weight : float
        Weight of the other image keys in a gated head; no unit, as ``focus_weight``. A head that
        would keep less than 2^-100 of its attention is not reweighted.
    min_ratio : float
        Threshold of ``"dynamic"`` on R_img (no unit).
    entropy_factor : float
        Threshold of ``"dynamic"`` on R_img per nat of H_joint (1 / nat).

    Returns
    -------
    SoftmaxResult
        Probabilities in the dtype of ``scores``, statistics, and the gate; the statistics are 0 as
        in :func:`decode_attention`.

    Raises
    ------
    ValueError
        A shape, dtype, device or value does not fit, or a tensor requires grad or carries a tangent
        in grad mode; the message names the argument, what was wanted and what came.

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
        except RuntimeError as error:
            raise _library.named(error) from None
    _checks.check_softmax(scores, key_flags, heads, settings)
    return reference.reweighted_softmax(scores, key_flags, heads=heads, **settings._asdict())


def simd_level(name: str | None = None) -> str:
    """Instruction set of the CPU kernels; with a name, change it for the whole process first.

    Parameters
    ----------
    name : {"generic", "avx2", "avx512", "avx512_bf16", "amx_bf16"}, optional
        Instruction set to change to; without it nothing changes.

    Returns
    -------
    str
        The one in use. Until a call changes it: that of the environment variable ``VRGA_EXT_SIMD``,
        or else the best one that this machine can run.

    Raises
    ------
    ValueError
        The instruction set is unknown, was not compiled, or cannot run on this machine.

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
    """Whether the native operations serve a dtype, a device and head dims; warns once if not.

    Parameters
    ----------
    tensor : [...]
        Its dtype and device count.
    vectors : tuple of tensors [..., D]
        Their last dimension counts, on a CUDA device.

    Returns
    -------
    bool

    Examples
    --------
    >>> has_kernel(torch.zeros(1, dtype=torch.bfloat16))
    True
    """
    if tensor.is_cpu and tensor.dtype in KERNEL_DTYPES:
        return True
    if not tensor.is_floating_point():
        return False  # the reference does not serve it either; its checks raise
    if tensor.dtype not in KERNEL_DTYPES:
        _warn_once(f"no kernel for {tensor.dtype}; using vrga_ext.reference")
        return False
    reason = f"no kernels for {tensor.device.type}"
    if tensor.device.type == "cuda":
        head_dim = max([v.shape[-1] for v in vectors if v.dim() > 0] + [0])
        reason = _library.cuda_unsupported_reason(tensor.device.index, head_dim)
    if reason:
        _warn_once(f"{reason}; using vrga_ext.reference")
    return reason == ""


@torch.compiler.assume_constant_result  # torch.compile warns while it traces
def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        warnings.warn(f"vrga_ext: {text}", stacklevel=4)
