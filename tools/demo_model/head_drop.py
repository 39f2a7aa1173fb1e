"""Training-time regulariser: hide the picture from random heads of a sequence.

Without it a head may use the picture as a resting place, and hiding the picture from that head then
breaks the model although the head reads nothing there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tools.demo_model.batches import IMAGE_SLICE

NAME = "demo_head_drop"


def register() -> None:
    """Make the attention function known to transformers as :data:`NAME`."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def draw(layers: int, batch: int, heads: int, share: float) -> Tensor:
    """Heads that do not see the picture, bool ``[layers, batch, heads]``.

    None in the upper half of the layers: the heads that read the picture form there, and would
    learn to stand in for each other.
    """
    blind = torch.rand(layers, batch, heads) < share
    blind[layers // 2 :] = False
    return blind


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    blind_heads: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention; query [B, H, S, D], key and value [B, Hkv, S, D], blind_heads [L, B, H]."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    length = query.shape[2]
    seen = torch.ones(length, length, dtype=torch.bool).tril()  # [S, S]
    if blind_heads is not None:
        picture = torch.zeros_like(seen)
        picture[IMAGE_SLICE.stop :, IMAGE_SLICE] = True
        blind = blind_heads[int(module.layer_idx)][:, :, None, None]  # type: ignore[arg-type]
        seen = seen & ~(blind & picture)  # [B, H, S, S]
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return output.transpose(1, 2).contiguous(), None
