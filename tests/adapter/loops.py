"""The plain greedy loop: one token per forward call on a cache of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def greedy_loop(
    model: Any, inputs: dict[str, Tensor], new_tokens: int = 6
) -> tuple[Tensor, Tensor]:
    """Tokens [B, steps] and logits [steps, B, vocabulary] of calls of ``model(...)``."""
    cache = DynamicCache(config=model.config)
    step, mask = dict(inputs), inputs.get("attention_mask")
    tokens, logits = [], []
    with torch.no_grad():
        for _ in range(new_tokens):
            output = model(**step, past_key_values=cache, use_cache=True)
            logits.append(output.logits[:, -1])
            tokens.append(logits[-1].argmax(-1, keepdim=True))
            step = {"input_ids": tokens[-1]}
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                step["attention_mask"] = mask
    return torch.cat(tokens, 1), torch.stack(logits)
