"""Records the query rows that ``capture`` wants, in prompts and in decode steps."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vrga_ext.integrations.transformers.call.query_row import Counts, QueryRowReader
from vrga_ext.integrations.transformers.observe.session import Call, Session, StoredRow
from vrga_ext.integrations.transformers.sequence.state import SequenceState
from vrga_ext.model_identity import ModelIdentity
from vrga_ext.plan import LayerPlan, Plan, ScheduledPlan
from vrga_ext.reference import FOCUS_FLAG, HeadStatistics
from vrga_ext.steering import stack_on_cpu

# Of a layer: statistics, which a gated layer computes anyway; those and the attention on the image
# keys; those and the attention on every key.
Want = Literal["statistics", "image", "keys"]


class LayerRow(NamedTuple):
    """One query row per sequence in one layer, as it is before anything is reweighted.

    Attributes
    ----------
    statistics : HeadStatistics
        R_img, H_img and H_joint, each fp32 [B, H].
    gate : bool [B, H], optional
        The reweighted heads; None where the model's own attention ran.
    attention : fp32 [B, H, keys], optional
        0 off the image unless every key is wanted.
    """

    statistics: HeadStatistics
    gate: Tensor | None
    attention: Tensor | None


class CaptureRecorder:
    """Keeps a session for every prompt that the model reads.

    Parameters
    ----------
    prompt_rows
        Rows of the prompt that are wanted, as :func:`check_prompt_rows` returns them.
    want
        What is kept of each layer.
    model
        The model that is recorded.
    """

    def __init__(
        self, prompt_rows: str | list[int] | list[list[int]], want: Want, model: ModelIdentity
    ) -> None:
        self.sessions: list[Session] = []
        self._prompt_rows = prompt_rows
        self._want = want
        self._model = model

    def call(
        self,
        state: SequenceState,
        past: int,
        tokens: int,
        plan: Plan | ScheduledPlan | None,
    ) -> CapturedCall | None:
        """What is recorded of a forward call of ``tokens`` behind ``past`` positions, if anything.

        ``plan`` is what the call reweights.

        Raises
        ------
        ValueError
            ``prompt_rows`` does not fit the prompt.
        """
        if not state.image.any():
            return None
        call = Call(state, past, tokens, state.prompt.call_ids)
        session = self._session(call)
        session.drop_from(past)
        slots, positions = session.wanted(call)
        return CapturedCall(session, call, slots, positions, self._want, plan) if slots else None

    def _session(self, call: Call) -> Session:
        prompt = call.state.prompt
        same = [session for session in self.sessions if session.prompt is prompt]
        for session in same:
            if session.state is call.state:
                return session
        session = Session(call, self._prompt_rows, self._want == "keys", self._model)
        if same:  # a copy of the cache goes its own way
            session.copy_from(same[0])
        self.sessions.append(session)
        return session


class CapturedCall:
    """One forward call of one session; in a decode step it travels in place of the plan.

    Parameters
    ----------
    session
        Where the rows are stored.
    call
        The forward call.
    slots
        Key of each of the R rows in the session.
    positions
        Of each of them, the position of every sequence's query. One outside the call is read in
        another call.
    want
        What is kept of each layer.
    plan
        What the call reweights; None while a prompt is read.
    """

    def __init__(
        self,
        session: Session,
        call: Call,
        slots: list[int],
        positions: list[list[int]],
        want: Want,
        plan: Plan | ScheduledPlan | None,
    ) -> None:
        self._plan, self._boosted = plan, call.state.boosted
        self._session, self._call, self._slots, self._want = session, call, slots, want
        self._positions = positions
        self._readers = [QueryRowReader(call.past, call.tokens, of_row) for of_row in positions]
        self._seen: list[dict[int, LayerRow]] = [{} for _ in positions]

    @property
    def observer(self) -> CapturedCall:
        """The call itself."""
        return self

    def plan_of(self, layer: int) -> LayerPlan | None:
        """What the layer of a decode step reweights."""
        return None if self._plan is None else self._plan.plan_of(layer)

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
        """Read every wanted row of a layer: see :class:`LayerObserver`."""
        flags = self._call.state.image_flags_on(key.device)
        for reader, seen in zip(self._readers, self._seen, strict=True):
            gate = attention = None
            other_flags = isinstance(self._plan, ScheduledPlan)  # where nothing is guided, none
            read = per_head is None or self._want != "statistics" or reader.counts is None
            if read or other_flags:
                result = reader.read(query, key, mask, flags, scale, softcap)
                statistics = result.statistics
                if self._want == "image":
                    attention = self._session.on_image(result.image_attention)
            if self._want == "keys":
                every = key.new_ones(key.shape[0], key.shape[2], dtype=torch.uint8)
                attention = reader.read(query, key, mask, every, scale, softcap).image_attention
            if per_head is not None:
                *numbers, gated = reader.pick(per_head.detach()).unbind(-1)
                gate = gated != 0
                if not other_flags:
                    statistics = HeadStatistics(*numbers)
            seen[layer] = LayerRow(statistics, gate, attention)

    def skip(self, layer: int, why: str) -> None:
        """A layer that is left alone shows nothing."""

    @torch.compiler.disable
    def end(self) -> None:
        """Store the rows once the call is over, and the selection if it ended a prompt."""
        self._session.finish_prompt()
        known = next((reader.counts for reader in self._readers if reader.counts), None)
        if known is None:  # no layer with full attention was seen
            return
        with torch.device("cpu"):
            none = Counts(*map(torch.zeros_like, known))
            for index, reader in enumerate(self._readers):
                # A row that every layer leaves out keeps its place.
                self._store(index, reader.counts or none)

    def _store(self, index: int, count: Counts) -> None:
        seen = self._seen[index]
        layers = tuple(sorted(seen))
        rows = [seen[layer] for layer in layers]
        statistics = stack_on_cpu([torch.stack(tuple(row.statistics)) for row in rows])
        shut = [torch.zeros_like(row.statistics.image_ratio, dtype=torch.bool) for row in rows]
        gates = [s if row.gate is None else row.gate for row, s in zip(rows, shut, strict=True)]
        kept = [row.attention for row in rows if row.attention is not None]
        positions = torch.tensor(self._positions[index])
        gate, boosted = stack_on_cpu(gates), self._boosted
        if isinstance(self._plan, ScheduledPlan):
            flags = self._plan.flags.cpu()[torch.arange(len(positions)), self._local(positions)]
            boosted = (flags & FOCUS_FLAG) != 0
            gate &= (flags != 0).any(1)[:, None]  # nothing is guided without flags
        stored = StoredRow(
            layers=layers,
            positions=positions,
            token_ids=self._token_ids(index),
            attended=count.keys.cpu(),
            image_keys=count.image_keys.cpu(),
            statistics=statistics,
            gate=gate,
            boosted=boosted,
            attention=stack_on_cpu(kept) if kept else None,
        )
        self._session.store(self._slots[index], stored, self._call)

    def _token_ids(self, index: int) -> Tensor:
        ids, positions = self._call.token_ids, torch.tensor(self._positions[index])
        if ids is None or ids.shape != (len(positions), self._call.tokens):
            return torch.full_like(positions, -1)
        return ids.cpu()[torch.arange(len(positions)), self._local(positions)]

    def _local(self, positions: Tensor) -> Tensor:
        """Index of each position's query within the call, the nearest one of those outside."""
        return (positions - self._call.past).clamp(0, self._call.tokens - 1)
