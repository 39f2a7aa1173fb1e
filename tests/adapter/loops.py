"""The plain greedy loop: one token per forward call on a cache of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.adapter.families import CACHE


def greedy_loop(
    model: Any,
    inputs: dict[str, Tensor],
    new_tokens: int = 6,
    *,
    cache: Any = None,
    forced: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens [1, steps] and logits [steps, 1, vocabulary] of calls of ``model(...)``, one row.

    Without a mask over the whole cache, which Qwen models take for positions. ``forced`` are
    tokens [steps] to follow instead of the greedy ones.
    """
    cache = DynamicCache(config=model.config) if cache is None else cache
    step = dict(inputs)
    tokens, logits = [], []
    with torch.no_grad():
        for index in range(new_tokens):
            output = model(**step, **{CACHE: cache}, use_cache=True)
            logits.append(output.logits[:, -1])
            greedy = logits[-1].argmax(-1, keepdim=True)
            tokens.append(greedy if forced is None else forced[None, index : index + 1])
            step = {"input_ids": tokens[-1]}
    return torch.cat(tokens, 1), torch.stack(logits)
