"""Query rows: attention of one query per sequence on the image, beside a layer's own attention.

While a prompt is read, the question's last token is such a row (:class:`QuestionRows`); ``capture``
reads further ones with the same :class:`QueryRowReader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrga_ext import ops
from vrga_ext.integrations.transformers.call.context import CallObserver
from vrga_ext.integrations.transformers.model.facts import ModelFacts
from vrga_ext.integrations.transformers.model.layers import BYPASSED, OTHER_HEADS
from vrga_ext.integrations.transformers.sequence.kv_cache import layers_with_keys
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.reference import RowResult
from vrga_ext.steering import QuestionStatistics


class Counts(NamedTuple):
    """How many keys the query rows of B sequences attend to.

    Attributes
    ----------
    keys : int64 [B]
        M, all of them.
    image_keys : int64 [B]
        n, those of V.
    """

    keys: Tensor
    image_keys: Tensor


class QueryRowReader:
    """Reads one query row per sequence in every layer of a forward call.

    Parameters
    ----------
    past, tokens
        Positions of the cache before the call, and tokens of the call.
    positions
        Position of each sequence's query. One outside the call is replaced by the nearest in it.

    Attributes
    ----------
    counts : Counts, optional
        Set by the first layer that computes every row.
    tokens : int
        Tokens of the call.
    """

    def __init__(self, past: int, tokens: int, positions: Sequence[int]) -> None:
        self.counts: Counts | None = None
        self._past = past
        self.tokens = tokens
        self._local = [min(max(position - past, 0), tokens - 1) for position in positions]
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def missed(self, query: Tensor) -> list[int]:
        """Sequences whose row a layer with this query [B, H, q, D] does not compute.

        A layer may compute the last q rows of the call only, those that the next token needs.
        """
        first = self.tokens - query.shape[2]
        return [index for index, row in enumerate(self._local) if row < first]

    def read(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        flags: Tensor,
        scale: float | None,
        softcap: float,
    ) -> RowResult:
        """Attention on flagged keys and the statistics; NaN for a missed row.

        Parameters
        ----------
        query : [B, H, q, D]
        key : [B, Hkv, K, D]
        mask : broadcastable to [B, H, q, K], optional
            Without it the call is causal and unpadded.
        flags : uint8 [B, N]
        scale, softcap
            As in the operations.
        """
        if query.device not in self._on:
            local = torch.tensor(self._local, device=query.device)
            self._on[query.device] = torch.arange(len(local), device=query.device), local
        sequences, local = self._on[query.device]
        row, key = self.pick(query.detach()), key.detach()
        if mask is not None and mask.shape[2] > 1:
            first = self.tokens - mask.shape[2]
            expanded = mask.expand(len(local), *mask.shape[1:])
            mask = expanded[sequences, :, (local - first).clamp(min=0)][:, :, None]
        elif mask is None and self.tokens > 1:
            key = key[:, :, : self._past + max(self._local) + 1]
            mask = torch.arange(key.shape[2], device=key.device) <= (self._past + local)[:, None]
            mask = mask[:, None, None]  # [B, 1, 1, K]
        flags = flags[:, : key.shape[2]]
        missed = self.missed(query) if query.shape[2] < self.tokens else []
        if self.counts is None and not missed:  # the same for every layer
            self.counts = _count(mask, flags, key.shape[2])
        result = ops.row_statistics(row, key, flags, attn_mask=mask, scale=scale, softcap=softcap)
        for tensor in result if missed else ():
            tensor[missed] = torch.nan
        return result

    def pick(self, tensor: Tensor) -> Tensor:
        """The rows [B, H, ...] of a tensor [B, H, q, ...] with the call's last q rows.

        :meth:`read` comes first: it puts the indices on the device.
        """
        if tensor.shape[2] == 1:
            return tensor[:, :, 0]
        sequences, local = self._on[tensor.device]
        return tensor[sequences, :, (local - (self.tokens - tensor.shape[2])).clamp(min=0)]


class QuestionRows:
    """One forward call over prompt tokens: reads the question rows that fall into it.

    Parameters
    ----------
    state
        The sequences that the call belongs to.
    past, tokens
        Positions of the cache before the call, and tokens of the call.
    captured
        What ``capture`` records of the call, if anything.

    Attributes
    ----------
    end : int
        Positions of the cache after the call.
    skipped : dict from str to list of int
        Reason -> layers that are left alone.
    missed : list of int
        Layers that do not compute a question row.
    """

    def __init__(
        self, state: SequenceState, past: int, tokens: int, captured: CallObserver | None = None
    ) -> None:
        self.state, self.end, self.captured = state, past + tokens, captured
        self.skipped: dict[str, list[int]] = {}
        self.missed: list[int] = []
        positions = [end.position for end in state.ends]
        self._here = [i for i, position in enumerate(positions) if past <= position < self.end]
        self._here_on: dict[torch.device, Tensor] = {}
        self._reader = QueryRowReader(past, tokens, positions)
        self._seen: set[int] = set()  # layers that call the attention function

    @property
    def observer(self) -> QuestionRows:
        """The pass itself."""
        return self

    def plan_of(self, layer: int) -> None:
        """Nothing is reweighted while a prompt is read."""

    def record(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float | None,
        softcap: float,
        per_head: Tensor | None = None,
    ) -> None:
        """Read the question row of every sequence in one layer: see :class:`LayerObserver`."""
        self._seen.add(layer)
        if self.captured is not None:
            self.captured.record(layer, query, key, mask, scale, softcap)
        if not self._here:
            return
        state, device = self.state, query.device
        if state.num_heads is None:
            state.num_heads = query.shape[1]
        elif state.num_heads != query.shape[1]:
            self.skip(layer, OTHER_HEADS)
            return
        if query.shape[2] < self._reader.tokens and not set(self._here).isdisjoint(
            self._reader.missed(query)
        ):
            self.missed.append(layer)
        flags = state.image_flags_on(device)
        attention, per_head = self._reader.read(query, key, mask, flags, scale, softcap)
        missing = state.image.shape[1] - attention.shape[2]
        attention = torch.nn.functional.pad(attention, (0, missing))
        recorded = QuestionStatistics(attention, per_head[..., 0], per_head[..., 1])
        if device not in self._here_on:
            self._here_on[device] = torch.tensor(self._here, device=device)
        here = self._here_on[device]
        if layer not in state.question:
            state.question[layer] = QuestionStatistics(*map(torch.zeros_like, recorded))
        for kept, new in zip(state.question[layer], recorded, strict=True):
            kept[here] = new[here]

    def skip(self, layer: int, why: str) -> None:
        """Leave a layer alone, for a reason."""
        self._seen.add(layer)
        self.skipped.setdefault(why, []).append(layer)

    def close(self, cache: Any, facts: ModelFacts) -> None:
        """Find the layers that never called the attention function; keep the numbers of keys.

        If any layer called it, those are the layers with keys in the KV cache and the layers whose
        class calls it. An early exit runs only the first of them.
        """
        if self._seen:
            running = range(getattr(facts.text_config, "num_hidden_layers", 0))
            bypassed = set(facts.full_layers).intersection(running) - self._seen
            bypassed.update(layers_with_keys(cache, self.end, self._seen))
            if bypassed:
                self.skipped[BYPASSED] = sorted(bypassed)
        if self._reader.counts is not None:
            counts = self._reader.counts.keys.tolist()
            for index in self._here:
                self.state.attended[index] = counts[index]


def _count(mask: Tensor | None, flags: Tensor, keys: int) -> Counts:
    """From flags [B, N] and a mask broadcastable to [B, H, 1, keys]."""
    image = flags != 0
    if mask is None:
        return Counts(torch.full_like(image[:, 0], keys, dtype=torch.long), image.sum(1))
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    seen = seen[:, 0, 0].expand(len(image), keys)
    return Counts(seen.sum(1), (image & seen[:, : image.shape[1]]).sum(1))
