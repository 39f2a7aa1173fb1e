"""Reading a prompt: one extra attention row per sample and layer, at the question's end."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from vrga_ext.integrations.transformers.model.layers import BYPASSED, OTHER_HEADS
from vrga_ext.integrations.transformers.observe.recorder import RowReader, WatchedCall
from vrga_ext.integrations.transformers.sequence.kv_cache import layers_with_keys
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.steering import QuestionStatistics


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
    watched
        The call's recorders, if there are any.
    """

    def __init__(
        self, state: SequenceState, past: int, tokens: int, watched: WatchedCall | None = None
    ) -> None:
        self.state = state
        self.end = past + tokens
        self.watched = watched
        self.seen: set[int] = set()  # layers that call the attention function
        self.skipped: dict[str, list[int]] = {}  # why -> layers that are left alone
        self.missed: list[int] = []  # layers that do not compute a question row
        columns = [end.position for end in state.ends]
        self._here = [row for row, column in enumerate(columns) if past <= column < self.end]
        self._here_on: dict[torch.device, Tensor] = {}
        self._reader = RowReader(past, tokens, columns)

    @property
    def observer(self) -> PrefillPass:
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
        """Attention on the image from the question row of every sample in this call, for one layer.

        ``query`` [B, H, q, D], ``key`` [B, Hkv, K, D], ``mask`` broadcastable to [B, H, q, K].
        """
        self.seen.add(layer)
        if self.watched is not None:
            self.watched.record(layer, query, key, mask, scale, softcap)
        if not self._here:
            return
        device = query.device
        if any(rows.heads != query.shape[1] for rows in self.state.rows.values()):
            self.skip(layer, OTHER_HEADS)
            return
        if not set(self._here).isdisjoint(self._reader.misses(query)):
            self.missed.append(layer)
        flags = self.state.image_flags_on(device)
        result = self._reader.read(query, key, mask, flags, scale, softcap)
        missing = self.state.image.shape[1] - result.image_attention.shape[2]
        recorded = QuestionStatistics(
            torch.nn.functional.pad(result.image_attention, (0, missing)),
            result.statistics.image_ratio,
            result.statistics.image_entropy,
        )
        if device not in self._here_on:
            self._here_on[device] = torch.tensor(self._here, device=device)
        here = self._here_on[device]
        stored = self.state.rows.setdefault(
            layer, QuestionStatistics(*map(torch.zeros_like, recorded))
        )
        for kept, new in zip(stored, recorded, strict=True):
            kept[here] = new[here]

    def skip(self, layer: int, why: str) -> None:
        """Take a layer that is left alone."""
        self.seen.add(layer)
        self.skipped.setdefault(why, []).append(layer)

    def find_bypassed(self, cache: Any, full_layers: Collection[int], text_config: Any) -> None:
        """Take the layers that attended without a call of the attention function, if any called it.

        Those are layers with keys in the KV cache, and ``full_layers``, which call it by their
        class; of these, an early exit runs the first ones only.
        """
        if not self.seen:
            return
        running = range(getattr(text_config, "num_hidden_layers", 0))
        missing = set(full_layers).intersection(running) - self.seen
        missing.update(layers_with_keys(cache, self.end, self.seen))
        if missing:
            self.skipped[BYPASSED] = sorted(missing)

    def finish(self) -> None:
        """Keep how many keys the question rows attended to, once every layer has been read."""
        if self._reader.counts is not None:
            counts = self._reader.counts.keys.tolist()
            for sample in self._here:
                self.state.attended[sample] = counts[sample]
