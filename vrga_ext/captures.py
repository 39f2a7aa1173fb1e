"""What :func:`vrga_ext.capture` returns: attention statistics of a prompt and of its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vrga_ext.capture_files import read_capture, write_capture
from vrga_ext.model_identity import ModelIdentity
from vrga_ext.region import Region
from vrga_ext.selection import RowStatistics, Span


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class Capture:
    """Attention statistics of one prompt and its answer, per layer and head (paper section 3).

    Axes: S samples (sequences of the KV cache, ``copies`` for each prompt of the batch), L layers,
    H query heads, R queries, n image tokens, C stored keys. The first ``prompt_rows`` queries are
    tokens of the prompt; each further one is a generated token while the model reads it, which is
    when it writes the next one. The model never reads the last token, which has no query.

    A position is an index into the KV cache. All tensors are on the CPU. Where a sample has fewer
    queries, image tokens or keys than another one, ``positions``, ``image_positions`` and
    ``columns`` hold -1; there the statistics are NaN and the attention is 0. The same holds for a
    query that sees no image token: of a sample without an image, or before its first one.

    Attributes
    ----------
    layers : tuple of int
        The model's own index of each of the L full-attention layers.
    prompt_rows : int
        How many of the R queries are tokens of the prompt.
    copies : int
        Samples for each prompt of the batch: beams, or returned sequences.
    focus_weight : tuple of S float
        Weight of boosted tokens in each sample's gated heads (no unit).
    image_weight : tuple of S float
        Weight of the other image tokens in each sample's gated heads (no unit).
    positions : int64 [S, R]
        Position of each query's token.
    token_ids : int64 [S, R]
        That token; -1 where the model was not given ``input_ids``.
    attended : int64 [S, R]
        M, the keys that the query attends to.
    image_keys : int64 [S, R]
        How many of them are image tokens: all n of the sample, but for a query within or before an
        image.
    image_ratio : float32 [S, L, H, R]
        R_img, mean attention on image tokens over mean attention (no unit).
    image_entropy : float32 [S, L, H, R]
        H_img, entropy of the attention inside the image (nats).
    joint_entropy : float32 [S, L, H, R]
        H_joint, the image tokens' part of the entropy over all keys (nats).
    gate : bool [S, L, H, R]
        Heads that were reweighted.
    image_positions : int64 [S, n]
        Positions of the image tokens (V), ascending.
    images : tuple of tuples of Span
        The images of each sample; their indices are into its ``image_positions``.
    boosted : bool [S, R, n]
        Image tokens that were boosted at each query: T_q after widening.
    regions : tuple of Region
        Heads and tokens selected for each prompt of the batch: S / ``copies`` of them.
    rows : float32 [S, L, H, R, C], optional
        Attention of each query on the stored keys, before reweighting; None without ``rows=``.
    columns : int64 [S, C], optional
        Positions of the stored keys; None without ``rows=``.
    model : ModelIdentity, optional
        The model that was captured; None in files of earlier versions.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> inputs = prepare(processor, held_out(1, seed=0), steps=0)
    >>> with vrga_ext.capture(model, processor=processor, rows=True) as recording:
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> capture = recording.last
    >>> capture.image_ratio.shape  # the question's last token, three generated ones
    torch.Size([1, 4, 8, 4])
    >>> capture.generated.image_rows().shape, capture.grid(0)
    (torch.Size([1, 4, 8, 3, 36]), (6, 6))
    """

    layers: tuple[int, ...]
    prompt_rows: int
    copies: int
    focus_weight: tuple[float, ...]
    image_weight: tuple[float, ...]
    positions: Tensor
    token_ids: Tensor
    attended: Tensor
    image_keys: Tensor
    image_ratio: Tensor
    image_entropy: Tensor
    joint_entropy: Tensor
    gate: Tensor
    image_positions: Tensor
    images: tuple[tuple[Span, ...], ...]
    boosted: Tensor
    regions: tuple[Region, ...]
    rows: Tensor | None = None
    columns: Tensor | None = None
    model: ModelIdentity | None = None

    @property
    def efr(self) -> Tensor:
        """Entropy-focus ratio ``H_img / R_img`` [S, L, H, R]; +inf for a head without both."""
        return RowStatistics.from_ratio(self.image_ratio, self.image_entropy).efr

    @property
    def image_share(self) -> Tensor:
        """Share of all attention that is on the image, ``R_img n / M`` [S, L, H, R]."""
        seen = self.image_keys / self.attended.clamp(min=1)
        return self.image_ratio * seen[:, None, None]

    @property
    def prompt(self) -> Capture:
        """The capture of the prompt's queries alone."""
        return self.select(slice(0, self.prompt_rows))

    @property
    def generated(self) -> Capture:
        """The capture of generated tokens alone."""
        return self.select(slice(self.prompt_rows, None))

    def region(self, sample: int) -> Region:
        """Heads and tokens selected for a sample, by its index among the S samples."""
        return self.regions[sample // self.copies]

    def grid(self, sample: int) -> tuple[int, int] | None:
        """Patch rows and columns of a sample's only image; None if unknown, or for several."""
        spans = self.images[sample]
        return spans[0].grid if len(spans) == 1 else None

    def select(self, queries: slice) -> Capture:
        """A capture of some of the R queries; its tensors are views of these.

        Parameters
        ----------
        queries
            Which of them, counted from the first.
        """
        kept = range(self.positions.shape[1])[queries]
        return replace(
            self,
            prompt_rows=sum(query < self.prompt_rows for query in kept),
            positions=self.positions[:, queries],
            token_ids=self.token_ids[:, queries],
            attended=self.attended[:, queries],
            image_keys=self.image_keys[:, queries],
            image_ratio=self.image_ratio[..., queries],
            image_entropy=self.image_entropy[..., queries],
            joint_entropy=self.joint_entropy[..., queries],
            gate=self.gate[..., queries],
            boosted=self.boosted[:, queries],
            rows=None if self.rows is None else self.rows[:, :, :, queries],
        )

    def image_rows(self, *, reweighted: bool = True) -> Tensor:
        r"""Attention of each query on the image tokens.

        Parameters
        ----------
        reweighted
            True: as the heads used it, in gated ones
            :math:`a'_i = w_i a_i / (1 + \sum_V (w_j - 1) a_j)` (paper section 4). False: before
            that, which is what ``image_ratio`` and the entropies describe.

        Returns
        -------
        float32 [S, L, H, R, n]
            Shares of all attention; 0 where a sample has no such query or token.

        Raises
        ------
        ValueError
            The capture holds statistics only.
        """
        rows = self.reweighted_rows() if reweighted else self._rows()
        return self._on_image(rows)

    def reweighted_rows(self) -> Tensor:
        """Attention of each query on the stored keys, as the heads used it: :meth:`image_rows`.

        Returns
        -------
        float32 [S, L, H, R, C]
            Shares of all attention.

        Raises
        ------
        ValueError
            The capture holds statistics only.
        """
        rows = self._rows()
        if not self.gate.any():
            return rows
        focus, others = (
            rows.new_tensor(weights)[:, None, None]
            for weights in (self.focus_weight, self.image_weight)
        )
        weights = torch.where(self.boosted, focus, others)  # [S, R, n]
        every = rows.new_ones(rows.shape[0], rows.shape[3], rows.shape[4] + 1)  # [S, R, C + 1]
        index = torch.where(self.image_positions < 0, rows.shape[4], self._image_index())
        every.scatter_(2, index[:, None].expand_as(weights), weights)
        weighted = rows * every[:, None, None, :, :-1]
        # A sum of weighted terms: 1 + sum (w - 1) a would cancel where little is left.
        total = weighted.sum(-1, keepdim=True)
        if self._image_alone():
            total += (1 - rows.sum(-1, keepdim=True)).clamp(min=0)  # text
        reweighted = weighted / torch.where(total > 0, total, 1.0)
        return torch.where(self.gate[..., None], reweighted, rows)

    def as_attentions(self) -> tuple[tuple[Tensor, ...], ...]:
        """The captured queries as the nested tuple of ``generate(output_attentions=True)``.

        Returns
        -------
        tuple of tuples of float32 [S, H, queries, keys]
            The prompt, if any of its queries was captured, then each generated token; for each of
            them one tensor per entry of ``layers``, as reweighted. ``queries`` is ``prompt_rows``
            for the prompt, which need not be its length, and 1 for a generated token. ``keys``
            reaches to the last query's own position. A key that was not stored has 0: with
            ``rows=True`` all text, so that a query sums to its share on the image.

        Raises
        ------
        ValueError
            The capture holds statistics only.
        """
        rows = self.reweighted_rows()
        assert self.columns is not None
        parts = [slice(r, r + 1) for r in range(self.prompt_rows, rows.shape[3])]
        if self.prompt_rows:
            parts.insert(0, slice(0, self.prompt_rows))
        steps = []
        for part in parts:
            keys = int(self.positions[:, part].max()) + 1
            inside = (self.columns >= 0) & (self.columns < keys)
            index = torch.where(inside, self.columns, keys)[:, None, None, None]
            taken = rows[:, :, :, part]
            full = taken.new_zeros(*taken.shape[:4], keys + 1)
            full.scatter_(4, index.expand_as(taken), taken)
            steps.append(tuple(full[..., :keys].unbind(1)))
        return tuple(steps)

    def follow_beams(self, beam_indices: Tensor) -> Capture:
        """The returned sequences of a beam search, one sample each.

        During the search a sample is a slot, whose beam may change from step to step, as in the
        ``attentions`` of transformers.

        Parameters
        ----------
        beam_indices : int64 [sequences, new tokens]
            As ``generate(return_dict_in_generate=True)`` returns them.

        Returns
        -------
        Capture
            With one sample per returned sequence.
        """
        slots = beam_indices.cpu()
        count = self.positions.shape[1]
        steps = count - self.prompt_rows + 1  # of the search: one more than generated queries
        missing = slots.new_full((len(slots), max(steps - slots.shape[1], 0)), -1)
        slots = torch.cat([slots, missing], 1)[:, :steps]
        slots = torch.cat([slots[:, :1].expand(-1, self.prompt_rows), slots[:, 1:]], 1)  # [s, R]
        lost = slots < 0
        picked = slots.clamp(min=0)
        first, query = picked[:, 0], torch.arange(count, device=picked.device)

        def per_query(tensor: Tensor, blank: float | int | bool) -> Tensor:  # queries are axis 1
            gone = lost.view(*lost.shape, *[1] * (tensor.dim() - 2))
            return tensor[picked, query].masked_fill(gone, blank)

        def per_head(tensor: Tensor, blank: float | bool) -> Tensor:  # queries are axis 3
            return per_query(tensor.movedim(3, 1), blank).movedim(1, 3)

        return replace(
            self,
            copies=1,
            positions=per_query(self.positions, -1),
            token_ids=per_query(self.token_ids, -1),
            attended=per_query(self.attended, 0),
            image_keys=per_query(self.image_keys, 0),
            image_ratio=per_head(self.image_ratio, torch.nan),
            image_entropy=per_head(self.image_entropy, torch.nan),
            joint_entropy=per_head(self.joint_entropy, torch.nan),
            gate=per_head(self.gate, False),
            image_positions=self.image_positions[first],
            focus_weight=tuple(self.focus_weight[slot] for slot in first.tolist()),
            image_weight=tuple(self.image_weight[slot] for slot in first.tolist()),
            images=tuple(self.images[slot] for slot in first.tolist()),
            boosted=per_query(self.boosted, False),
            regions=tuple(self.region(slot) for slot in first.tolist()),
            rows=None if self.rows is None else per_head(self.rows, 0.0),
            columns=None if self.columns is None else self.columns[first],
        )

    def to_dataframe(self) -> Any:
        """One line per sample, layer, head and query, as a pandas ``DataFrame``.

        Returns
        -------
        pandas.DataFrame
            Columns: sample, layer, head, row (the query's index), generated, position, token_id,
            image_ratio, image_entropy, efr, joint_entropy, gate. A query that a sample does not
            have has no line.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe: wanted pandas (pip install pandas)") from error
        shape = self.image_ratio.shape
        sample, layer, head, query = (
            axis.flatten()
            for axis in torch.meshgrid(
                *(torch.arange(size, device="cpu") for size in shape), indexing="ij"
            )
        )
        table = {
            "sample": sample,
            "layer": layer.new_tensor(self.layers)[layer],
            "head": head,
            "row": query,
            "generated": query >= self.prompt_rows,
            "position": self.positions[sample, query],
            "token_id": self.token_ids[sample, query],
        }
        for name in ("image_ratio", "image_entropy", "efr", "joint_entropy", "gate"):
            table[name] = getattr(self, name).flatten()
        there = table["position"] >= 0
        return pandas.DataFrame({name: column[there].numpy() for name, column in table.items()})

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file; :meth:`load` reads it.

        Parameters
        ----------
        path
            The file; an existing one is replaced once the new one is whole.

        Raises
        ------
        OSError
            The file cannot be written; an existing one stays as it was.
        """
        write_capture(self, Path(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Capture:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Capture

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is not a capture, its parts do not fit each other, or its format is newer; the
            message names what was wanted and what came.
        """
        return cls(**read_capture(Path(path)))

    # ---- helpers -----------------------------------------------------------------------------

    def _rows(self) -> Tensor:
        if self.rows is None:
            raise ValueError("rows: wanted a capture made with rows=True, got statistics only")
        return self.rows

    def _image_index(self) -> Tensor:
        """Index of each image token among the stored keys, int64 [S, n]; 0 without a token."""
        if self._image_alone():
            index = torch.arange(self.image_positions.shape[1], device=self.image_positions.device)
            return index.expand_as(self.image_positions)
        return self.image_positions.clamp(min=0)

    def _image_alone(self) -> bool:
        """Whether only the image's keys are stored, not all."""
        assert self.columns is not None
        return torch.equal(self.columns, self.image_positions)

    def _on_image(self, rows: Tensor) -> Tensor:
        """Attention on the image tokens [S, L, H, R, n], of that on stored keys [S, L, H, R, C]."""
        there = self.image_positions >= 0
        index = self._image_index()[:, None, None, None].expand(*rows.shape[:4], -1)
        return torch.where(there[:, None, None, None], rows.gather(4, index), 0.0)
