"""The three operations: typed entry to the native kernels.

Same names, arguments and results as :mod:`vrga_ext.reference`, which specifies them. What has no
kernel (float64, say) runs there, with one warning per reason. There is no autograd: a tensor that
requires grad is refused while grad mode is on.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from vrga_ext import reference
from vrga_ext.reference import DecodeResult, HeadStatistics, RowResult, SoftmaxResult

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_GATES = ("static", "dynamic")
_warned: set[str] = set()


def _load_library() -> None:
    spec = importlib.util.find_spec("vrga_ext._ops")
    if spec is None or spec.origin is None:
        raise ImportError(
            "vrga_ext has no compiled operations here (a source folder that was never built?); "
            "run `pip install .` in the repository and import from another folder, "
            "or `pip install -e .` to use the folder itself"
        )
    torch.ops.load_library(spec.origin)


_load_library()


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
    gate: str = "dynamic",
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
    _check_attention(query, key, 4, "[B, Hq, Sq, D]")
    batch, heads_q, rows, _ = query.shape
    _check(
        value.dim() == 4 and value.shape[:3] == key.shape[:3],
        f"value: wanted {[*key.shape[:3], 'Dv']}, got {[*value.shape]}",
    )
    _check_like("value", value, query)
    _check_flags(key_flags, query, key.shape[2])
    _check_mask(attn_mask, query, (batch, heads_q, rows, key.shape[2]))
    _check_heads(heads, query)
    _check_gate(gate, focus_weight, image_weight, softcap)
    _check_no_grad(query=query, key=key, value=value, attn_mask=attn_mask)
    if _no_kernel(query):
        return reference.decode_attention(
            query,
            key,
            value,
            key_flags,
            attn_mask=attn_mask,
            heads=heads,
            scale=scale,
            softcap=softcap,
            gate=gate,
            focus_weight=focus_weight,
            image_weight=image_weight,
            min_ratio=min_ratio,
            entropy_factor=entropy_factor,
        )
    output, packed = torch.ops.vrga_ext.decode_attention(
        query,
        key,
        value,
        key_flags,
        attn_mask,
        heads,
        query.shape[-1] ** -0.5 if scale is None else scale,
        softcap,
        gate,
        focus_weight,
        image_weight,
        min_ratio,
        entropy_factor,
    )
    return DecodeResult(output, HeadStatistics(*packed.unbind(-1)[:3]), packed[..., 3] != 0)


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
    _check_attention(query, key, 3, "[B, Hq, D]")
    _check_flags(key_flags, query, key.shape[2])
    _check_mask(attn_mask, query, (*query.shape[:2], 1, key.shape[2]))
    _check_softcap(softcap)
    _check_no_grad(query=query, key=key, attn_mask=attn_mask)
    if _no_kernel(query):
        return reference.row_statistics(
            query, key, key_flags, attn_mask=attn_mask, scale=scale, softcap=softcap
        )
    image_attention, packed = torch.ops.vrga_ext.row_statistics(
        query,
        key,
        key_flags,
        attn_mask,
        query.shape[-1] ** -0.5 if scale is None else scale,
        softcap,
    )
    return RowResult(image_attention, HeadStatistics(*packed.unbind(-1)))


def reweighted_softmax(
    scores: Tensor,
    key_flags: Tensor,
    *,
    heads: Tensor | None = None,
    gate: str = "dynamic",
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
    _check(scores.dim() == 4, f"scores: wanted [B, Hq, Sq, Skv], got {[*scores.shape]}")
    _check_floating("scores", scores)
    _check_flags(key_flags, scores, scores.shape[3])
    _check_heads(heads, scores)
    _check_gate(gate, focus_weight, image_weight)
    _check_no_grad(scores=scores)
    if _no_kernel(scores):
        return reference.reweighted_softmax(
            scores,
            key_flags,
            heads=heads,
            gate=gate,
            focus_weight=focus_weight,
            image_weight=image_weight,
            min_ratio=min_ratio,
            entropy_factor=entropy_factor,
        )
    probabilities, packed = torch.ops.vrga_ext.reweighted_softmax(
        scores, key_flags, heads, gate, focus_weight, image_weight, min_ratio, entropy_factor
    )
    return SoftmaxResult(probabilities, HeadStatistics(*packed.unbind(-1)[:3]), packed[..., 3] != 0)


def simd_level(name: str | None = None) -> str:
    """Instruction set of the CPU kernels; with a name, change it for the whole process first.

    ``VRGA_EXT_SIMD`` in the environment chooses the first one; without it that is the best the
    machine has. Names: ``generic``, ``avx2``, ``avx512``, ``avx512_bf16``.

    Raises
    ------
    ValueError
        If the level is unknown, not compiled in, or cannot run on this machine.
    """
    try:
        level: str = torch.ops.vrga_ext._simd_level(name or "")
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return level


def _no_kernel(tensor: Tensor) -> bool:
    """Whether the reference must serve this tensor; says why, once per reason."""
    if tensor.dtype not in KERNEL_DTYPES:
        _warn_once(f"no kernel for {tensor.dtype}; using vrga_ext.reference")
        return True
    if tensor.device.type == "cpu":
        return False
    if tensor.device.type == "cuda" and _has_cuda_kernels():
        return False
    reason = "pip install . again with a CUDA build of torch and nvcc builds them"
    _warn_once(f"no {tensor.device.type} kernels ({reason}); using vrga_ext.reference")
    return True


def _has_cuda_kernels() -> bool:
    from vrga_ext import _build_info

    return _build_info.cuda_architectures != ""


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        warnings.warn(f"vrga_ext: {text}", stacklevel=4)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_floating(name: str, tensor: Tensor) -> None:
    _check(tensor.is_floating_point(), f"{name}: wanted a floating dtype, got {tensor.dtype}")


def _check_like(name: str, tensor: Tensor, query: Tensor) -> None:
    _check(tensor.dtype == query.dtype, f"{name}: wanted {query.dtype}, got {tensor.dtype}")
    _check_device(name, tensor, query)


def _check_device(name: str, tensor: Tensor, first: Tensor) -> None:
    _check(tensor.device == first.device, f"{name}: wanted on {first.device}, got {tensor.device}")


def _check_attention(query: Tensor, key: Tensor, dims: int, layout: str) -> None:
    _check(query.dim() == dims, f"query: wanted {layout}, got {[*query.shape]}")
    _check_floating("query", query)
    batch, heads_q, dim = query.shape[0], query.shape[1], query.shape[-1]
    _check(
        key.dim() == 4 and key.shape[0] == batch and key.shape[3] == dim,
        f"key: wanted {[batch, 'Hkv', 'Skv', dim]}, got {[*key.shape]}",
    )
    _check(
        key.shape[1] > 0 and heads_q % key.shape[1] == 0,
        f"key: wanted a number of heads that divides {heads_q}, got {key.shape[1]}",
    )
    _check_like("key", key, query)


def _check_flags(key_flags: Tensor, first: Tensor, keys: int) -> None:
    _check(key_flags.dtype == torch.uint8, f"key_flags: wanted torch.uint8, got {key_flags.dtype}")
    _check(
        key_flags.dim() == 2
        and key_flags.shape[0] == first.shape[0]
        and key_flags.shape[1] <= keys,
        f"key_flags: wanted [{first.shape[0]}, at most {keys}], got {[*key_flags.shape]}",
    )
    _check_device("key_flags", key_flags, first)


def _check_mask(mask: Tensor | None, first: Tensor, shape: Sequence[int]) -> None:
    if mask is None:
        return
    _check(
        mask.dtype == torch.bool or mask.is_floating_point(),
        f"attn_mask: wanted torch.bool or a floating dtype, got {mask.dtype}",
    )
    fits = 1 <= mask.dim() <= 4 and mask.shape[-1] == shape[-1]
    for size, full in zip(mask.shape[:-1], shape[4 - mask.dim() :], strict=False):
        fits = fits and size in (1, full)
    _check(
        fits,
        f"attn_mask: wanted a shape that broadcasts to {[*shape]} with a full last dimension, "
        f"got {[*mask.shape]}",
    )
    _check_device("attn_mask", mask, first)


def _check_heads(heads: Tensor | None, first: Tensor) -> None:
    if heads is None:
        return
    _check(heads.dtype == torch.bool, f"heads: wanted torch.bool, got {heads.dtype}")
    _check(
        heads.shape == first.shape[:2],
        f"heads: wanted {[*first.shape[:2]]}, got {[*heads.shape]}",
    )
    _check_device("heads", heads, first)


def _check_gate(gate: str, focus_weight: float, image_weight: float, softcap: float = 0.0) -> None:
    _check(gate in _GATES, f"gate: wanted 'static' or 'dynamic', got {gate!r}")
    _check(focus_weight >= 0, f"focus_weight: wanted >= 0, got {focus_weight}")
    _check(image_weight >= 0, f"image_weight: wanted >= 0, got {image_weight}")
    _check_softcap(softcap)


def _check_softcap(softcap: float) -> None:
    _check(softcap >= 0, f"softcap: wanted >= 0, got {softcap}")


def _check_no_grad(**tensors: Tensor | None) -> None:
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        _check(
            tensor is None or not tensor.requires_grad,
            f"{name}: wanted a tensor that does not require grad (there is no backward), "
            "got one that does; use torch.no_grad()",
        )


@torch.library.register_fake("vrga_ext::decode_attention")
def _decode_attention_fake(
    query: Tensor, key: Tensor, value: Tensor, key_flags: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    rows = query.shape[:3]
    return query.new_empty((*rows, value.shape[3])), query.new_empty(
        (*rows, 4), dtype=torch.float32
    )


@torch.library.register_fake("vrga_ext::row_statistics")
def _row_statistics_fake(
    query: Tensor, key: Tensor, key_flags: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    rows = query.shape[:2]
    return (
        query.new_empty((*rows, key_flags.shape[1]), dtype=torch.float32),
        query.new_empty((*rows, 3), dtype=torch.float32),
    )


@torch.library.register_fake("vrga_ext::reweighted_softmax")
def _reweighted_softmax_fake(
    scores: Tensor, key_flags: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape), scores.new_empty(
        (*scores.shape[:3], 4), dtype=torch.float32
    )
