"""The seam for recorders: what every layer's attention shows, in prompts and in decode steps.

A recorder stands in ``Runtime.recorders``. Before each forward call it is asked for a watch; the
watch names the query rows it wants, is given them layer by layer, and is told when the call is
over. Without a watch a call runs as it would without recorders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from vrga_ext import ops
from vrga_ext.integrations.transformers.on_cpu import on_cpu
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.reference import HeadStatistics, RowResult
from vrga_ext.steering import LayerPlan

# Of a layer: statistics, which a gated layer computes anyway; those and the attention on the image
# keys; those and the attention on every key.
Want = Literal["statistics", "image", "keys"]


class Call(NamedTuple):
    """One forward call of the decoder on B cache rows."""

    state: SequenceState
    past: int  # cache columns before the call
    tokens: int  # query rows, at columns past ... past + tokens - 1
    token_ids: Tensor | None  # int64 [B, tokens] of these columns, where the model was given them


class LayerRow(NamedTuple):
    """One query row per sample in one layer, as it is before anything is reweighted."""

    statistics: HeadStatistics  # R_img, H_img and H_joint, each fp32 [B, H]
    gate: Tensor | None  # bool [B, H], the reweighted heads; None: the model's own attention ran
    attention: Tensor | None  # fp32 [B, H, keys], 0 off the image unless every key is wanted


class Counts(NamedTuple):
    """How many keys the query rows of B samples attend to, each int64 [B]."""

    keys: Tensor  # M
    image_keys: Tensor  # n, those of V


class Watch(Protocol):
    """What a recorder does in one forward call."""

    @property
    def columns(self) -> Sequence[Sequence[int]]:
        """R rows: cache column of each sample's query; one outside the call is read elsewhere."""

    @property
    def want(self) -> Want:
        """What to compute in every layer."""

    def record(self, layer: int, index: int, row: LayerRow) -> None:
        """Take row ``index`` of ``columns`` in a layer; tensors are on the layer's device."""

    def end(self, counts: list[Counts]) -> None:
        """The call is over, and so is the selection if it ended a prompt.

        ``counts``: one for each row of ``columns``; none if no layer with full attention was seen.
        """


class Recorder(Protocol):
    """Watches the forward calls of a model in which VRGA is enabled."""

    def watch(self, call: Call) -> Watch | None:
        """A watch over a call, or None to let it pass."""


class RowReader:
    """Reads one query row per sample out of a forward call, with ``row_statistics``.

    Parameters
    ----------
    past, tokens
        Cache columns before the call, and tokens of the call.
    columns
        Cache column of each sample's query; one outside the call is moved to its nearest end.

    A layer may compute the last of the call's rows only, those that the next token needs.
    """

    def __init__(self, past: int, tokens: int, columns: Sequence[int]) -> None:
        self.counts: Counts | None = None  # after the first read
        self._past = past
        self._tokens = tokens
        self._local = [min(max(column - past, 0), tokens - 1) for column in columns]
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def misses(self, query: Tensor) -> list[int]:
        """Samples whose row a layer with this query [B, H, q, D] does not compute."""
        first = self._tokens - query.shape[2]
        return [sample for sample, row in enumerate(self._local) if row < first]

    def pick(self, tensor: Tensor) -> Tensor:
        """The rows [B, H, ...] of a tensor [B, H, q, ...], which holds the call's last q rows."""
        if tensor.shape[2] == 1:
            return tensor[:, :, 0]
        samples, local = self._indices_on(tensor.device)
        return tensor[samples, :, self._within(local, tensor.shape[2])]

    def read(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        flags: Tensor,
        scale: float | None,
        softcap: float,
    ) -> RowResult:
        """Attention on flagged keys [B, H, N] and the statistics [B, H]; NaN for a missed row.

        ``query`` [B, H, q, D], ``key`` [B, Hkv, K, D], ``mask`` broadcastable to [B, H, q, K];
        without a mask the call is causal and unpadded.
        """
        row, key = self.pick(query.detach()), key.detach()
        missed = self.misses(query)
        if mask is not None:
            mask = self._mask_row(mask)
        elif self._tokens > 1:
            key = key[:, :, : self._past + max(self._local) + 1]
            _, local = self._indices_on(key.device)
            mask = torch.arange(key.shape[2], device=key.device) <= (self._past + local)[:, None]
            mask = mask[:, None, None]  # [B, 1, 1, K]
        flags = flags[:, : key.shape[2]]
        if self.counts is None and not missed:  # the same for every layer
            self.counts = _count(mask, flags, key.shape[2])
        result = ops.row_statistics(row, key, flags, attn_mask=mask, scale=scale, softcap=softcap)
        for tensor in result if missed else ():
            tensor[missed] = torch.nan
        return result

    def _mask_row(self, mask: Tensor) -> Tensor:
        """The rows' mask, broadcastable to [B, H, 1, K]."""
        if mask.shape[2] == 1:
            return mask
        samples, local = self._indices_on(mask.device)
        local = self._within(local, mask.shape[2])
        return mask.expand(len(local), *mask.shape[1:])[samples, :, local][:, :, None]

    def _within(self, local: Tensor, rows: int) -> Tensor:
        """Index of each sample's row among the last ``rows`` of the call."""
        return (local - (self._tokens - rows)).clamp(min=0)

    def _indices_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """0 ... B - 1 and each sample's row of the call, int64 [B]."""
        if device not in self._on:
            local = torch.tensor(self._local, device=device)
            self._on[device] = torch.arange(len(local), device=device), local
        return self._on[device]


class WatchedCall:
    """The watches of one forward call; in a decode step it travels in place of the state."""

    def __init__(self, call: Call, watches: Sequence[Watch]) -> None:
        self.state = call.state
        self._watched = [
            (watch, [RowReader(call.past, call.tokens, columns) for columns in watch.columns])
            for watch in watches
        ]

    @property
    def observer(self) -> WatchedCall:
        """The call itself."""
        return self

    def plan_of(self, layer: int) -> LayerPlan | None:
        """What the layer of a decode step reweights."""
        return None if self.state.plan is None else self.state.plan.plan_of(layer)

    @torch.compiler.disable
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
        """Give the watches their rows of one layer.

        ``per_head``: R_img, H_img, H_joint and the gate of a reweighted layer, fp32 [B, H, q, 4].
        """
        for watch, readers in self._watched:
            want = watch.want
            for index, reader in enumerate(readers):
                rows = query, key, mask
                result = gate = attention = None
                if per_head is None or want != "statistics" or reader.counts is None:
                    flags = self.state.image_flags_on(key.device)
                    result = reader.read(*rows, flags, scale, softcap)
                    statistics = result.statistics
                    attention = result.image_attention if want != "statistics" else None
                if want == "keys":
                    every = key.new_ones(key.shape[0], key.shape[2], dtype=torch.uint8)
                    attention = reader.read(*rows, every, scale, softcap).image_attention
                if per_head is not None:
                    ratio, entropy, joint, gated = reader.pick(per_head.detach()).unbind(-1)
                    statistics, gate = HeadStatistics(ratio, entropy, joint), gated != 0
                watch.record(layer, index, LayerRow(statistics, gate, attention))

    def skip(self, layer: int, why: str) -> None:
        """A layer that is left alone shows nothing."""

    @torch.compiler.disable
    @on_cpu
    def end(self) -> None:
        """Tell the watches that the call is over."""
        for watch, readers in self._watched:
            known = [reader.counts for reader in readers if reader.counts is not None]
            none = Counts(*map(torch.zeros_like, known[0])) if known else None
            # A row that every layer leaves out keeps its place.
            watch.end([reader.counts or none for reader in readers if none is not None])


def _count(mask: Tensor | None, flags: Tensor, keys: int) -> Counts:
    """From flags [B, N] and a mask broadcastable to [B, H, 1, keys]."""
    image = flags != 0
    if mask is None:
        return Counts(torch.full_like(image[:, 0], keys, dtype=torch.long), image.sum(1))
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    seen = seen[:, 0, 0].expand(len(image), keys)
    return Counts(seen.sum(1), (image & seen[:, : image.shape[1]]).sum(1))
