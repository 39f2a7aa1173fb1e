"""The method as its formula is written: attention weights stored, then reweighted head by head."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import vrga_ext
from tests.adapter.families import greedy


@contextlib.contextmanager
def language_attention(model: Any, implementation: str) -> Iterator[None]:
    """Run the language model, and it alone, on another attention implementation."""
    text = model.config.get_text_config(decoder=True)
    key = next(key for key in model.config.sub_configs if getattr(model.config, key) is text)
    before = text._attn_implementation
    model.set_attn_implementation({key: implementation})
    try:
        yield
    finally:
        model.set_attn_implementation({key: before})


def explicit_attention(
    regions: list[vrga_ext.Region], prompt_length: int, config: vrga_ext.VRGAConfig
) -> Callable[..., tuple[Tensor, Tensor]]:
    """An attention function that reweights the stored weights of every decode step."""

    def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.mT * (scaling or query.shape[-1] ** -0.5)
        if kwargs.get("softcap"):
            scores = kwargs["softcap"] * torch.tanh(scores / kwargs["softcap"])
        if attention_mask is not None:
            scores = scores + attention_mask[..., : key.shape[2]]
        a = scores.softmax(-1)
        reads_prompt = query.shape[2] > 1 or key.shape[2] <= prompt_length
        if not reads_prompt and kwargs.get("sliding_window") is None:
            a = a.clone()
            for row, region in enumerate(regions):
                for head in range(query.shape[1]):
                    reweight(a[row, head, 0], scores[row, head, 0], region, module.layer_idx, head)
        return (a @ value).transpose(1, 2).contiguous(), a

    def reweight(a, scores, region, layer, head):
        image = a[region.image_positions]
        ratio = image.mean() * (scores > -1e30).sum()
        joint = -(image * image.log()).sum()
        if config.gate == "static":
            gated = (layer, head) in region.visual_heads
        else:
            gated = bool(ratio > config.min_ratio and ratio > config.entropy_factor * joint)
        if not gated:
            return
        others = region.image_positions[~torch.isin(region.image_positions, region.boosted)]
        a[region.boosted] *= 1 + config.gamma
        a[others] *= config.suppress
        a /= a.sum()

    return attend


def explicit_greedy(
    model: Any,
    inputs: dict[str, Tensor],
    tokens: Tensor,
    regions: list[vrga_ext.Region],
    config: vrga_ext.VRGAConfig,
) -> Any:
    """Generation with :func:`explicit_attention` along given tokens, int64 [B, steps].

    The tokens are forced, so that one rounding cannot lead elsewhere.
    """
    attend = explicit_attention(regions, inputs["input_ids"].shape[1], config)
    AttentionInterface.register("explicit", attend)
    AttentionMaskInterface.register("explicit", eager_mask)
    step = itertools.count()

    def follow(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -1e9).scatter(1, tokens[:, [next(step)]], 0.0)

    with language_attention(model, "explicit"):
        return greedy(model, inputs, tokens.shape[1], logits_processor=[follow])
