"""Reading a prompt: one extra attention row per sample and layer, at the question's end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vrga_ext import ops
from vrga_ext.adapter.regions import Rows
from vrga_ext.adapter.state import SequenceState
from vrga_ext.reference import IMAGE_FLAG


class PrefillPass:
    """One forward call over prompt tokens: records the question rows that fall into it.

    Parameters
    ----------
    state
        The sequences that the call belongs to.
    past
        Cache columns before the call.
    tokens
        Tokens of the call.
    """

    def __init__(self, state: SequenceState, past: int, tokens: int) -> None:
        self.state = state
        self.past = past
        self.end = past + tokens
        local = [end.position - past for end in state.ends]
        self._here = [row for row, index in enumerate(local) if 0 <= index < tokens]
        self._ends = [min(max(index, 0), tokens - 1) for index in local]
        self._on: dict[torch.device, _PassTensors] = {}
        self._counted = False

    def record(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float | None,
        softcap: float,
    ) -> None:
        """Attention on the image from the question row of every sample in this call, for one layer.

        ``query`` [B, H, q, D], ``key`` [B, Hkv, K, D], ``mask`` broadcastable to [B, H, q, K].
        """
        if not self._here:
            return
        on = self._tensors_on(query.device)
        row = query.detach()[on.samples, :, on.ends]  # [B, H, D]
        key = key.detach()
        if mask is None:  # causal, without padding
            key = key[:, :, : self.past + max(self._ends) + 1]
            mask = torch.arange(key.shape[2], device=key.device) <= (self.past + on.ends)[:, None]
            mask = mask[:, None, None]  # [B, 1, 1, K]
        else:
            mask = mask.expand(len(on.samples), *mask.shape[1:])
            mask = mask[on.samples, :, on.ends if mask.shape[2] > 1 else 0][:, :, None]
        flags = on.flags[:, : key.shape[2]]
        result = ops.row_statistics(row, key, flags, attn_mask=mask, scale=scale, softcap=softcap)
        columns = self.state.image.shape[1]
        missing = columns - result.image_attention.shape[2]
        recorded = Rows(
            torch.nn.functional.pad(result.image_attention, (0, missing)),
            result.statistics.image_ratio,
            result.statistics.image_entropy,
        )
        stored = self.state.rows.setdefault(layer, Rows(*map(torch.zeros_like, recorded)))
        for kept, new in zip(stored, recorded, strict=True):
            kept[on.here] = new[on.here]
        if not self._counted:  # the same for every layer
            self._counted = True
            counts = _attended(mask).sum(-1)[:, 0, 0].tolist()
            for sample in self._here:
                self.state.attended[sample] = counts[sample]

    def _tensors_on(self, device: torch.device) -> _PassTensors:
        if device not in self._on:
            self._on[device] = _PassTensors(
                ends=torch.tensor(self._ends, device=device),
                samples=torch.arange(len(self._ends), device=device),
                here=torch.tensor(self._here, device=device),
                flags=self.state.keys.to(device, torch.uint8) * IMAGE_FLAG,
            )
        return self._on[device]


class _PassTensors(NamedTuple):
    ends: Tensor  # int64 [B], row of the call that is the sample's question end
    samples: Tensor  # int64 [B], 0 ... B - 1
    here: Tensor  # int64, samples whose question end is in this call
    flags: Tensor  # uint8 [B, columns]


def _attended(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
