"""One prompt and its answer under capture: which rows it wants, and what has been seen of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrga_ext.captures import Capture
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.model_identity import ModelIdentity
from vrga_ext.region import Region

PromptRows = str | int | Sequence[int] | Sequence[Sequence[int]]


class Call(NamedTuple):
    """One forward call of the decoder on B sequences.

    Attributes
    ----------
    state : SequenceState
        The state of its KV cache.
    past : int
        Positions of the cache before the call.
    tokens : int
        Query rows, at positions past ... past + tokens - 1.
    token_ids : int64 [B, tokens], optional
        Tokens of these positions, where the model was given them.
    """

    state: SequenceState
    past: int
    tokens: int
    token_ids: Tensor | None


@dataclass
class StoredRow:
    """One query row of B sequences, on the CPU.

    Attributes
    ----------
    layers : tuple of int
        L of them.
    positions : int64 [B]
        -1 where the sequence does not have the row.
    token_ids : int64 [B]
        The token there.
    attended, image_keys : int64 [B]
        M and n.
    statistics : fp32 [L, 3, B, H]
        R_img, H_img and H_joint.
    gate : bool [L, B, H]
        The reweighted heads.
    boosted : bool [B, N]
        The boosted tokens of the prompt.
    attention : fp32 [L, B, H, keys], optional
        On the image tokens, or on every key.
    """

    layers: tuple[int, ...]
    positions: Tensor
    token_ids: Tensor
    attended: Tensor
    image_keys: Tensor
    statistics: Tensor
    gate: Tensor
    boosted: Tensor
    attention: Tensor | None

    def merged(self, here: Tensor, other: StoredRow | None) -> StoredRow:
        """This row for the samples of ``here``, bool [B], and another one for the rest."""
        across = here[:, None]
        gaps: dict[str, Any] = {"positions": -1, "token_ids": -1, "attended": 0, "image_keys": 0}
        gaps |= {"statistics": torch.nan, "gate": False, "attention": 0.0}
        merged: dict[str, Any] = {}
        for name, gap in gaps.items():
            mine = getattr(self, name)
            if mine is None:
                continue
            rest = torch.full_like(mine, gap) if other is None else getattr(other, name)
            mask = here
            if name in ("statistics", "gate"):
                mask = across
            elif name == "attention":
                mask = across[:, :, None]
                width = max(mine.shape[-1], rest.shape[-1])
                mine, rest = _widened(mine, width), _widened(rest, width)
            merged[name] = torch.where(mask, mine, rest)
        return replace(self, **merged)

    def repeated(self, batch: int) -> StoredRow:
        """The row after the cache's sequences were repeated."""
        times = batch // len(self.positions)
        if times == 1:
            return self

        def repeat(tensor: Tensor, dim: int) -> Tensor:
            return tensor.repeat_interleave(times, dim)

        return StoredRow(
            self.layers,
            repeat(self.positions, 0),
            repeat(self.token_ids, 0),
            repeat(self.attended, 0),
            repeat(self.image_keys, 0),
            repeat(self.statistics, 2),
            repeat(self.gate, 1),
            repeat(self.boosted, 0),
            None if self.attention is None else repeat(self.attention, 1),
        )


class Session:
    """One prompt and its answer.

    Parameters
    ----------
    call
        The prompt's first forward call that is watched.
    prompt_rows
        Of :func:`check_prompt_rows`.
    every_key
        Attention is kept on every key; else, if at all, on the image tokens.
    model
        The model that is recorded.

    Raises
    ------
    ValueError
        ``prompt_rows`` does not fit the prompt.
    """

    def __init__(
        self,
        call: Call,
        prompt_rows: str | list[int] | list[list[int]],
        every_key: bool,
        model: ModelIdentity,
    ) -> None:
        state, self._model = call.state, model
        self.state, self.prompt, self.settings = state, state.prompt, state.settings
        self._every_key = every_key
        # Row of the prompt - P (negative), or position of a generated token -> what it showed
        self.rows: dict[int, StoredRow] = {}
        self._prompt_batch = len(state.ends) // state.copies
        self._prompt_length = state.image.shape[1]
        self._image_mask = state.image_mask
        self._regions: list[Region] = []
        self._indices: dict[tuple[torch.device, int], Tensor] = {}
        self._built: Capture | None = None
        if call.tokens and state.decoding:  # a copy of a cache, or the capture began after it
            self._wanted: list[list[int]] = []
            return
        per_sample = self._checked(prompt_rows, call.past)
        longest = max(map(len, per_sample))
        padded = [rows + [-1] * (longest - len(rows)) for rows in per_sample]
        self._wanted = [list(positions) for positions in zip(*padded, strict=True)]  # P lists of B

    def _checked(
        self, prompt_rows: str | list[int] | list[list[int]], past: int
    ) -> list[list[int]]:
        """Wanted positions of each of the B sequences."""
        state = self.state
        batch, length = state.image.shape
        if isinstance(prompt_rows, str):
            return [[end.position] for end in state.ends]
        nested = [rows for rows in prompt_rows if isinstance(rows, list)]
        if nested and len(nested) != self._prompt_batch:
            raise ValueError(
                f"prompt_rows: wanted one list for each sample of the prompt "
                f"({self._prompt_batch}), got {len(nested)}"
            )
        mask = self.prompt.padding_mask(batch, length)
        per_sample: list[list[int]] = []
        for sequence in range(batch):
            own: Any = nested[sequence // state.copies] if nested else prompt_rows
            for index in own:
                if not past <= index < length:
                    raise ValueError(
                        f"prompt_rows: wanted indices in [{past}, {length}) of the prompt, got "
                        f"{index} (sample {sequence // state.copies})"
                    )
                if not mask[sequence, index]:
                    raise ValueError(
                        f"prompt_rows: wanted tokens of sample {sequence // state.copies}, got "
                        f"{index}, which is padding"
                    )
            per_sample.append(own)
        return per_sample

    @property
    def seen(self) -> bool:
        """Whether there is anything to build a capture of."""
        return bool(self.rows and self._regions)

    def wanted(self, call: Call) -> tuple[list[int], list[list[int]]]:
        """Keys into ``rows`` of what a forward call holds, and the position in each sequence."""
        end = call.past + call.tokens
        slots, positions = [], []
        for index, wanted in enumerate(self._wanted):
            if any(call.past <= position < end for position in wanted):
                slots.append(index - len(self._wanted))
                positions.append(wanted)
        batch = call.state.image.shape[0]
        for position in range(max(call.past, self._prompt_length), end):
            slots.append(position)
            positions.append([position] * batch)
        return slots, positions

    def drop_from(self, past: int) -> None:
        """Drop generated tokens that were taken back: rejected drafts, or a cropped cache."""
        for position in [position for position in self.rows if position >= past]:
            del self.rows[position]

    def store(self, slot: int, row: StoredRow, call: Call) -> None:
        """Keep a row; sequences whose position is not in the call keep what they have."""
        here = (row.positions >= call.past) & (row.positions < call.past + call.tokens)
        self.rows[slot] = row if here.all() else row.merged(here, self.rows.get(slot))
        self._built = None

    def finish_prompt(self) -> None:
        """Keep the regions, once they have been selected."""
        if not self._regions and self.state.decoding:
            self._regions = list(self.state.regions)

    def copy_from(self, other: Session) -> None:
        """Start from what another one has seen."""
        self.rows, self._regions = dict(other.rows), other._regions

    def on_image(self, attention: Tensor) -> Tensor:
        """Of attention on the prompt's keys [B, H, N] the image tokens [B, H, n]."""
        batch, heads, keys = attention.shape
        where = attention.device, batch
        if where not in self._indices:
            self._indices[where] = self._image_positions(batch).to(attention.device)
        index = self._indices[where]
        there = (index >= 0) & (index < keys)  # a row before the image's end sees a part of it
        index = index.clamp(0, keys - 1)[:, None].expand(-1, heads, -1)
        return torch.where(there[:, None], attention.gather(2, index), 0.0)

    def _image_positions(self, batch: int) -> Tensor:
        """Columns of V, int64 [batch, n], -1 after the last one."""
        keys = self._image_mask.repeat_interleave(batch // self._image_mask.shape[0], 0)
        found = [mask.nonzero().flatten() for mask in keys]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1)

    def build(self) -> Capture:
        """Everything so far; built anew only if there is more."""
        if self._built is None:
            with torch.device("cpu"):
                self._built = self._build()
        return self._built

    def _build(self) -> Capture:
        order = sorted(self.rows)
        batch = max(len(row.positions) for row in self.rows.values())
        rows = [self.rows[slot].repeated(batch) for slot in order]
        layers = rows[0].layers
        image_positions = self._image_positions(batch)
        copies = batch // self._prompt_batch
        boosted = torch.stack([row.boosted for row in rows], dim=1)  # [S, R, N]
        index = image_positions.clamp(min=0)[:, None].expand(-1, len(rows), -1)
        statistics = torch.stack([row.statistics for row in rows], dim=-1)  # [L, 3, S, H, R]
        image_keys = torch.stack([row.image_keys for row in rows], dim=1)  # [S, R]
        blind = (image_keys == 0)[:, None, None]
        statistics = statistics.permute(1, 2, 0, 3, 4).masked_fill(blind, torch.nan)
        ratio, entropy, joint = statistics.contiguous()
        attention = columns = None
        kept = [row.attention for row in rows if row.attention is not None]
        if kept:
            width = max(tensor.shape[-1] for tensor in kept)
            if self._every_key:  # rows of the prompt may all end before its image does
                width = max(width, self._prompt_length)
            by_sample = [_widened(tensor, width).transpose(0, 1) for tensor in kept]
            attention = torch.stack(by_sample, dim=3)  # [S, L, H, R, C]
            views = attention.transpose(0, 1).unbind(3)  # so that nothing is kept twice
            for slot, row, view in zip(order, rows, views, strict=True):
                self.rows[slot] = replace(row, attention=view)
            columns = image_positions
            if self._every_key:
                columns = torch.arange(width).expand(batch, -1)
        gates = [own.gate for own in self.settings for _ in range(copies)]
        return Capture(
            layers=layers,
            prompt_rows=sum(slot < 0 for slot in order),
            copies=copies,
            focus_weight=tuple(gate.focus_weight for gate in gates),
            image_weight=tuple(gate.image_weight for gate in gates),
            positions=torch.stack([row.positions for row in rows], dim=1),
            token_ids=torch.stack([row.token_ids for row in rows], dim=1),
            attended=torch.stack([row.attended for row in rows], dim=1),
            image_keys=image_keys,
            image_ratio=ratio,
            image_entropy=entropy,
            joint_entropy=joint,
            gate=torch.stack([row.gate for row in rows], dim=-1).transpose(0, 1).contiguous(),
            image_positions=image_positions,
            images=tuple(self._regions[i // copies].images for i in range(batch)),
            boosted=boosted.gather(2, index) & (image_positions >= 0)[:, None],
            regions=tuple(self._regions),
            rows=attention,
            columns=columns,
            model=self._model,
        )


def check_prompt_rows(prompt_rows: Any) -> str | list[int] | list[list[int]]:
    """``"question"``, a list of indices, or a list of lists, from what a caller may pass.

    Raises
    ------
    TypeError
        Anything else.
    """
    if isinstance(prompt_rows, str) and prompt_rows == "question":
        return prompt_rows
    value = prompt_rows.tolist() if hasattr(prompt_rows, "tolist") else prompt_rows
    try:
        if isinstance(value, str):
            raise TypeError
        if not isinstance(value, Iterable):
            return [operator.index(value)]
        value = list(value)
        if any(isinstance(item, Iterable) for item in value):
            return [[operator.index(index) for index in item] for item in value]
        return [operator.index(item) for item in value]
    except TypeError:
        raise TypeError(
            "prompt_rows: wanted 'question', an index, several, or a list of them for each "
            f"sample of the prompt, got {prompt_rows!r}"
        ) from None


def _widened(tensor: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]))
