"""Image attention of an enabled model, recorded while it reads a prompt and writes an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vrga_ext import reference
from vrga_ext.adapter.prefill import PrefillPass
from vrga_ext.adapter.state import SequenceState


class Recording:
    """Attention on the prompt's columns, layer by layer.

    Attributes
    ----------
    question : dict
        Layer to the question row of every head, ``[B, H, columns]``; 0 off the image.
    steps : list of dict
        The same for each generated token, as reweighted.
    """

    def __init__(self) -> None:
        self.question: dict[int, Tensor] = {}
        self.steps: list[dict[int, Tensor]] = []

    def question_rows(self) -> Tensor:
        """``[B, L, H, columns]`` at the question's last token."""
        return _stack(self.question)

    def step_rows(self, step: int) -> Tensor:
        """``[B, L, H, columns]`` while generated token ``step`` is read, 0 being the first one."""
        return _stack(self.steps[step])


@contextmanager
def record(model: Any) -> Iterator[Recording]:
    """Record a model in which VRGA is enabled, for as long as the block lasts.

    The attention function that ``enable`` registered is wrapped, so that whatever it does is left
    as it is; the rows are computed beside it by the reference.
    """
    name = model.config.get_text_config(decoder=True)._attn_implementation
    original = ALL_ATTENTION_FUNCTIONS[name]
    recording = Recording()

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        vrga: PrefillPass | SequenceState | None = None,
        **kwargs: Any,
    ) -> Any:
        output = original(module, query, key, value, attention_mask, vrga=vrga, **kwargs)
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if isinstance(vrga, PrefillPass):
            if layer in vrga.state.rows:
                recording.question[layer] = vrga.state.rows[layer].image_attention.clone()
        elif layer in recording.question and query.shape[2] == 1:
            if not recording.steps or layer in recording.steps[-1]:
                recording.steps.append({})
            scores = _scores(query, key, attention_mask, kwargs.get("scaling"))
            row = scores.softmax(-1) if vrga is None else _reweighted(layer, scores, vrga)
            columns = recording.question[layer].shape[-1]
            recording.steps[-1][layer] = row[:, :, 0, :columns]
        return output

    AttentionInterface.register(name, attention)
    try:
        yield recording
    finally:
        AttentionInterface.register(name, original)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Scaled and masked scores ``[B, H, 1, K]`` of query [B, H, 1, D] and key [B, Hkv, K, D]."""
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query.float() @ keys.float().transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if mask is None:
        return scores
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    return scores.masked_fill(~seen, -torch.inf)


def _reweighted(layer: int, scores: Tensor, state: SequenceState) -> Tensor:
    """Probabilities ``[B, H, 1, K]`` as the layer reweights them."""
    if layer not in state.layer_heads:
        return scores.softmax(-1)
    return reference.reweighted_softmax(
        scores,
        state.flags_on(scores.device),
        heads=state.heads_on(layer, scores.device),
        **state.gate_keywords,
    ).probabilities


def _stack(rows: dict[int, Tensor]) -> Tensor:
    return torch.stack([rows[layer] for layer in sorted(rows)], dim=1)
