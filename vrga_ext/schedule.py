"""A guide's schedule as data: which keys are boosted at each generated token.

Everything is a tensor, so that a compiled decode step, whose graph serves every token, follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NEVER = torch.iinfo(torch.int64).max
_NO_TOKEN = -2  # no model generates it


@dataclass(frozen=True)
class Timing:
    """When the phases of one sample's guide hold.

    Attributes
    ----------
    starts : tuple of int
        First generated token of each phase after the first, ascending.
    between : (int, int), optional
        Ids of the tokens that start and end the guided part of the answer.

    Examples
    --------
    >>> Timing(starts=(8,)).between is None
    True
    """

    starts: tuple[int, ...] = ()
    between: tuple[int, int] | None = None


class Schedule:
    """Which flags hold at each generated token of B sequences.

    Generated token t is written by the query of the token before it, at position ``first + t - 1``.

    Parameters
    ----------
    first : int
        Position of generated token 0: the length of the prompt.
    phases : uint8 [B, P, N]
        ``key_flags`` of the operations in each phase.
    timings : sequence of B Timing
        When they hold.
    inside : sequence of B bool
        Whether the prompt has opened the guided part already.
    capacity : int
        Tokens that may be generated, if known; else 0. A compiled step needs it.

    Attributes
    ----------
    longest : int
        P, phases of a sequence.

    Examples
    --------
    >>> phases = torch.tensor([[[1, 3], [3, 1]]], dtype=torch.uint8)
    >>> schedule = Schedule(4, phases, [Timing(starts=(2,))], [True], capacity=0)
    >>> schedule.flags_at(4, torch.tensor([[7, 8]]))[0].tolist()  # of tokens 1 and 2
    [[1, 3], [3, 1]]
    """

    def __init__(
        self,
        first: int,
        phases: Tensor,
        timings: Sequence[Timing],
        inside: Sequence[bool],
        capacity: int,
    ) -> None:
        device, batch = phases.device, len(timings)
        self.longest = phases.shape[1]
        starts = [
            [*timing.starts, *[_NEVER] * (self.longest - 1 - len(timing.starts))]
            for timing in timings
        ]
        marks = [timing.between or (_NO_TOKEN, _NO_TOKEN) for timing in timings]
        nothing = torch.zeros_like(phases[:, :1])
        self._flags = torch.cat([phases, nothing], 1)  # [B, P + 1, N], nothing last
        self._first = torch.tensor(first, device=device)
        self._starts = torch.tensor(starts, device=device, dtype=torch.int64).view(batch, -1)
        self._marks = torch.tensor(marks, device=device)  # [B, 2]
        self._marked = any(timing.between for timing in timings)
        # Column t: whether the guided part is open once t generated tokens have been read.
        history = torch.zeros(batch, capacity + 1, dtype=torch.bool, device=device)
        history[:, 0] = torch.tensor(inside, device=device)
        self._inside = history
        for tensor in (self._flags, self._inside, self._starts, self._marks):
            torch._dynamo.mark_static_address(tensor)
        torch._dynamo.maybe_mark_dynamic(self._flags, 2)

    def flags_at(self, past: int | Tensor, ids: Tensor | None, tokens: int = 1) -> Tensor:
        """Flags of the queries of one forward call, uint8 [B, q, N].

        Parameters
        ----------
        past
            Positions of the cache before the call.
        ids : int64 [B, q], optional
            Tokens of the call. Without them the guided part is taken to stay open or shut.
        tokens : int
            q, without ids.
        """
        device = self._flags.device
        count = tokens if ids is None else ids.shape[1]
        read = torch.as_tensor(past, device=device) - self._first  # generated tokens read before
        written = read + torch.arange(1, count + 1, device=device)  # [q]
        phase = (self._starts[:, None] <= written[:, None]).sum(-1)  # [B, q]
        if self._marked:
            phase = torch.where(self._read(read, ids, count), phase, self.longest)
        sequences = torch.arange(len(phase), device=device)[:, None]
        return self._flags[sequences, phase]

    def _read(self, read: Tensor, ids: Tensor | None, count: int) -> Tensor:
        """Whether the guided part is open after each token of a call, bool [B, q]; kept."""
        if not torch.compiler.is_compiling():
            missing = int(read) + count + 1 - self._inside.shape[1]
            if missing > 0:
                self._inside = torch.nn.functional.pad(self._inside, (0, missing))
        last = self._inside.shape[1] - 1
        steps = (read + torch.arange(count + 1, device=read.device)).clamp(0, last)
        state = self._inside.index_select(1, steps[:1])[:, 0]
        states = []
        for query in range(count):
            if ids is not None:
                token = ids[:, query, None].to(self._marks.device) == self._marks  # [B, 2]
                state = (state | token[:, 0]) & ~token[:, 1]
            states.append(state)
        found = torch.stack(states, 1)
        self._inside.index_copy_(1, steps[1:], found)
        return found

    def reindexed(self, sources: Tensor) -> Schedule:
        """The schedule of sequences that are copies of these.

        Parameters
        ----------
        sources : int64 [B']
            The sequence that each of them is a copy of.
        """
        copy = object.__new__(Schedule)
        copy.__dict__.update(self.__dict__)
        sources = sources.to(self._flags.device)
        for name in ("_flags", "_starts", "_marks", "_inside"):
            setattr(copy, name, getattr(self, name)[sources])
        return copy
