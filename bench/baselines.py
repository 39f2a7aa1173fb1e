"""Implementations that are not ours: torch's own attention, plain PyTorch, other packages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bench.inputs import ENTROPY_FACTOR, FOCUS_WEIGHT, MIN_RATIO, Case, Inputs

Run = Callable[[Inputs], Tensor]

_BACKENDS = {
    "FLASH": SDPBackend.FLASH_ATTENTION,
    "CUDNN": SDPBackend.CUDNN_ATTENTION,
    "EFFICIENT": SDPBackend.EFFICIENT_ATTENTION,
    "MATH": SDPBackend.MATH,
}


def _pinned(backend: str | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if backend is None else sdpa_kernel(_BACKENDS[backend])


def sdpa(backend: str | None = None) -> Run:
    """Plain attention as most models call it."""

    def run(x: Inputs) -> Tensor:
        with _pinned(backend):
            return scaled_dot_product_attention(x.query, x.key, x.value, enable_gqa=True)

    return run


def sdpa_packed(backend: str | None = None, bias: bool = False) -> Run:
    """The group as query rows: K and V are read once. With the bias: a static gate in all heads."""

    def run(x: Inputs) -> Tensor:
        packed = x.packed
        mask = x.bias if bias else x.mask
        mask = None if mask is None else mask.expand(*packed.shape[:3], -1)
        with _pinned(backend):
            output = scaled_dot_product_attention(packed, x.key, x.value, attn_mask=mask)
        return output.reshape(x.query.shape)

    return run


def flex_attention(case: Case) -> Run:
    """FlexAttention with the bias of a static gate in all heads."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()  # one shape's code, so that no guard of another is tried
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(x: Inputs) -> Tensor:
        bias = x.bias[:, 0, 0]

        def add_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + bias[b, k]

        output: Any = compiled(x.query, x.key, x.value, score_mod=add_bias, enable_gqa=True)
        assert isinstance(output, Tensor)
        return output

    return run


def flashinfer_single(case: Case) -> Run:
    """FlashInfer's decode of one sample, on tensor cores."""
    import flashinfer  # type: ignore[import-not-found]

    if case.shape.batch > 1:
        raise ValueError("for one sample only")

    def run(x: Inputs) -> Tensor:
        output: Tensor = flashinfer.single_decode_with_kv_cache(
            x.query[0, :, 0], x.key[0], x.value[0], kv_layout="HND", use_tensor_cores=True
        )
        return output[None, :, None]

    return run


_PAGE = 16  # keys of a page of FlashInfer's batched decode


def flashinfer_paged(tensor_cores: bool) -> Callable[[Case], Run]:
    """FlashInfer's batched decode, planned once per shape, on pages that are views of K and V."""

    def make(case: Case) -> Run:
        import flashinfer

        s = case.shape
        if s.keys % _PAGE:
            raise ValueError(f"keys: wanted whole pages of {_PAGE}")
        per_sample, per_head = s.heads_kv * s.keys // _PAGE, s.keys // _PAGE
        pages = torch.arange(s.batch)[:, None] * per_sample + torch.arange(per_head)
        ends = torch.arange(s.batch + 1) * per_head
        last = torch.full((s.batch,), _PAGE)
        workspace = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "HND", use_tensor_cores=tensor_cores
        )
        lists = [t.flatten().to("cuda", torch.int32) for t in (ends, pages, last)]
        dtype = getattr(torch, case.dtype)
        wrapper.plan(*lists, s.heads, s.heads_kv, s.dim, _PAGE, q_data_type=dtype)

        def paged(cache: Tensor) -> Tensor:
            size = (s.batch * per_sample - per_sample + per_head, s.heads_kv, _PAGE, s.dim)
            return cache.as_strided(size, (_PAGE * s.dim, s.keys * s.dim, s.dim, 1))

        def run(x: Inputs) -> Tensor:
            output: Tensor = wrapper.run(x.row, (paged(x.key), paged(x.value)))
            return output[:, :, None]

        return run

    return make


def flash_attention_3(case: Case) -> Run:
    """Decode with a plan made once per shape."""
    try:
        from flash_attn_interface import (  # type: ignore[import-not-found]
            flash_attn_with_kvcache,
            get_scheduler_metadata,
        )
    except ImportError:
        from fa3_fwd_interface import (  # type: ignore[import-not-found]
            flash_attn_with_kvcache,
            get_scheduler_metadata,
        )

    s = case.shape
    lengths = torch.full((s.batch,), s.keys, dtype=torch.int32, device="cuda")
    dtype = getattr(torch, case.dtype)
    plan = get_scheduler_metadata(s.batch, 1, s.keys, s.heads, s.heads_kv, s.dim, lengths, dtype)

    def run(x: Inputs) -> Tensor:
        output: Tensor = flash_attn_with_kvcache(
            x.query.transpose(1, 2),
            x.key.transpose(1, 2),
            x.value.transpose(1, 2),
            cache_seqlens=lengths,
            scheduler_metadata=plan,
        )
        return output.transpose(1, 2)

    return run


def read_only(x: Inputs) -> Tensor:
    """K and V read once and squared: no attention can be faster than this machine's memory."""
    k, v = (t.view(torch.float32).flatten() for t in (x.key, x.value))
    return torch.dot(k, k) + torch.dot(v, v)


def stored_as_written(x: Inputs) -> Tensor:
    """VRGA in vectorised PyTorch, each formula as the method states it; weights stored."""
    a = torch.softmax((x.packed @ x.key.mT).float() * x.query.shape[-1] ** -0.5, -1)
    image, focus = x.image, x.focus
    a_image = torch.where(image, a, 0.0)
    share = a_image.sum(-1, keepdim=True)
    ratio = share * a.shape[-1] / image.sum(-1, keepdim=True)
    inside = a_image / share
    entropy = -(inside * torch.log(inside + 1e-8)).sum(-1)  # H_img, which the operation returns
    assert entropy.shape == ratio.shape[:-1]
    joint = -(a_image * torch.log(a_image + 1e-8)).sum(-1, keepdim=True)
    gate = (ratio > MIN_RATIO) & (ratio > ENTROPY_FACTOR * joint)
    weighted = a * torch.where(gate & focus, FOCUS_WEIGHT, 1.0)
    weighted = weighted / weighted.sum(-1, keepdim=True)
    return (weighted.to(x.value.dtype) @ x.value).reshape(x.query.shape)


def stored_tuned(x: Inputs) -> Tensor:
    """The same with fewer passes: one entropy from the other, weights only where gated."""
    scores = (x.packed @ x.key.mT).float() * x.query.shape[-1] ** -0.5
    probabilities = _reweight(torch.softmax(scores, -1), x)
    return (probabilities.to(x.value.dtype) @ x.value).reshape(x.query.shape)


def stored_softmax(x: Inputs) -> Tensor:
    """Reweighted softmax in vectorised PyTorch."""
    return _reweight(torch.softmax(x.scores.float(), -1), x).to(x.scores.dtype)


def stored_rows(x: Inputs) -> Tensor:
    """Image attention and statistics of one row per sample in vectorised PyTorch."""
    a = torch.softmax((x.packed @ x.key.mT).float() * x.query.shape[-1] ** -0.5, -1)
    _statistics(a, x.image.float())
    return torch.where(x.image, a, 0.0).reshape(*x.query.shape[:2], -1)


def _statistics(a: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a_image = a * image
    share = a_image.sum(-1, keepdim=True)
    joint = torch.special.entr(a_image).sum(-1, keepdim=True)
    ratio = share * (a.shape[-1] / image.sum(-1, keepdim=True))
    return ratio, joint / share + share.log(), joint


def _reweight(a: Tensor, x: Inputs) -> Tensor:
    ratio, _, joint = _statistics(a, x.image.float())
    gate = (ratio > MIN_RATIO) & (ratio > ENTROPY_FACTOR * joint)
    weighted = a * torch.where(x.focus, FOCUS_WEIGHT, 1.0)
    return torch.where(gate, weighted / weighted.sum(-1, keepdim=True), a)
