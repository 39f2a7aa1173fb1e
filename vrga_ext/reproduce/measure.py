"""All questions of a task under one condition: scores of the answers, and their attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vrga_ext
from vrga_ext.analysis import Paired, compare, head_mask, relevant_tokens, rrar
from vrga_ext.captures import Capture
from vrga_ext.config import VRGAConfig
from vrga_ext.reproduce.interventions import Hook
from vrga_ext.reproduce.tasks import Task


class Mean(NamedTuple):
    """A mean and its standard error.

    Attributes
    ----------
    value : float
        The mean; NaN without values.
    error : float
        Its standard error, from the sample deviation, in the same unit; NaN for fewer than two
        values.

    Examples
    --------
    >>> Mean.from_values(np.array([1.0, 3.0, np.nan]))
    Mean(value=2.0, error=1.0)
    """

    value: float
    error: float

    @classmethod
    def from_values(cls, values: np.ndarray) -> Mean:
        """Over all finite values."""
        kept = values[np.isfinite(values)]
        if not len(kept):
            return cls(float("nan"), float("nan"))
        error = float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else float("nan")
        return cls(float(kept.mean()), error)


@dataclass(frozen=True)
class ImageAttention:
    """Attention of n questions on the image, in L layers with H heads each.

    ``RRAR = mean_B(a) / mean_V(a)`` (no unit), with V the image tokens and B those of the true
    region.

    Attributes
    ----------
    image_ratio : float32 [n, L, H]
        R_img at the question's last token (no unit).
    image_entropy : float32 [n, L, H]
        H_img at the question's last token (nats).
    selected : bool [n, L, H]
        The visual heads.
    question : float32 [n, L, H]
        RRAR at the question's last token.
    answer : float32 [n, L, H]
        RRAR while the answer is written, mean over the task's answer tokens.
    drift : float32 [n, K]
        RRAR of the visual heads at each of the task's drift tokens; NaN behind the last one.
    layers : tuple of int
        The model's own index of each of the L layers.
    """

    image_ratio: np.ndarray
    image_entropy: np.ndarray
    selected: np.ndarray
    question: np.ndarray
    answer: np.ndarray
    drift: np.ndarray
    layers: tuple[int, ...]

    def over_selected(self, values: np.ndarray) -> np.ndarray:
        """Mean over each question's visual heads, ``[n]``; NaN where there is none."""
        return _head_mean(values, self.selected)

    def over_others(self, values: np.ndarray) -> np.ndarray:
        """Mean over the other heads, ``[n]``."""
        return _head_mean(values, ~self.selected)

    def over_all(self, values: np.ndarray) -> np.ndarray:
        """Mean over all heads, ``[n]``."""
        return _head_mean(values, np.ones_like(self.selected))


@dataclass(frozen=True)
class Run:
    """The outcome of one condition on n questions.

    Attributes
    ----------
    scores : float64 [n]
        How right each answer is, in [0, 1].
    boosted : float
        Boosted tokens, mean over the questions.
    heads : float
        Reweighted heads, mean over the questions.
    recorded : ImageAttention, optional
        Attention of the answers; None where it was not recorded.

    Examples
    --------
    >>> run = Run(np.array([1.0, 0.0, 1.0, 1.0]), boosted=5.0, heads=3.0)
    >>> run.accuracy.value
    0.75
    """

    scores: np.ndarray
    boosted: float
    heads: float
    recorded: ImageAttention | None = None

    @property
    def accuracy(self) -> Mean:
        """Mean score and its standard error."""
        return Mean.from_values(self.scores)

    @property
    def attention(self) -> ImageAttention:
        """Attention of the answers, for a condition that recorded it."""
        assert self.recorded is not None
        return self.recorded

    def against(self, other: Run) -> Paired:
        """This condition against another one on the same questions."""
        return compare(self.scores, other.scores)


def measure(
    model: Any,
    processor: Any,
    task: Task,
    mode: str,
    config: VRGAConfig,
    *,
    hook: Hook | None = None,
    attention: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> Run:
    """Ask every question of a task.

    Parameters
    ----------
    model, processor
        The model and its processor.
    task
        The questions.
    mode
        One of ``task.modes``.
    config
        VRGA's thresholds; with ``gamma`` 0 the answers are those of the model alone, bit for bit.
    hook
        A control from :mod:`vrga_ext.reproduce.interventions`.
    attention
        Whether to record the attention.
    advance
        Called after each batch with its number of questions.

    Returns
    -------
    Run
    """
    scores: list[float] = []
    used: list[tuple[int, int]] = []
    attentions: list[ImageAttention] = []
    with vrga_ext.enable(model, config, processor=processor) as handle:
        handle.region_hook = hook
        for indices, inputs in task.batches(mode):
            if attention:
                with vrga_ext.capture(model, rows=True) as recording:
                    written = _trimmed(model, task.answer(model, inputs, mode))
                tokens = relevant_tokens(
                    recording.last,
                    [[task.boxes[i]] for i in indices],
                    [task.sizes[i] for i in indices],
                    processor=processor,
                    config=model.config,
                )
                attentions.append(_attention_of(recording.last, tokens, written, task))
            else:
                written = _trimmed(model, task.answer(model, inputs, mode))
            scores += [task.score(i, answer) for i, answer in zip(indices, written, strict=True)]
            used += [(len(r.boosted), len(r.visual_heads)) for r in handle.regions]
            advance(len(indices))
    boosted, heads = np.mean(used, axis=0).tolist()
    return Run(np.array(scores), boosted, heads, _joined(attentions) if attentions else None)


def _trimmed(model: Any, written: Tensor) -> list[Tensor]:
    """Each answer ``[T]`` of ``written`` [B, T] up to its end token."""
    ends = model.generation_config.eos_token_id
    written = written.cpu()
    over = torch.isin(written, torch.tensor([] if ends is None else ends, dtype=written.dtype))
    lengths = torch.where(over.any(1), over.int().argmax(1), written.shape[1])
    return [answer[:length] for answer, length in zip(written, lengths.tolist(), strict=True)]


def _attention_of(
    capture: Capture, tokens: Tensor, written: list[Tensor], task: Task
) -> ImageAttention:
    """Attention of a batch on the image; ``tokens`` [B, n] are the true regions'.

    ``written`` are its answers ``[T]``.
    """
    ratio = rrar(capture, tokens)  # [B, L, H, R]
    first = capture.prompt_rows
    steps = ratio.shape[3] - first  # generated tokens that were read
    heads = ratio.shape[2]
    selected = torch.stack(
        [head_mask(region.visual_heads, capture.layers, heads) for region in capture.regions]
    )
    answer = torch.zeros(len(written), steps, dtype=torch.bool)
    followed = torch.zeros(len(written), steps, dtype=torch.bool)
    for sample, own in enumerate(written):
        answer[sample, : len(own)] = task.answer_tokens(own)[:steps]
        followed[sample, : len(own)] = task.drift_tokens(own)[:steps]
    order = followed.int().argsort(
        dim=1, descending=True, stable=True
    )  # [B, T], followed ones first
    order = order[:, : int(followed.sum(1).max())]

    kept = selected[..., None] & followed[:, None, None]
    drift = _nanmean(ratio[..., first:], kept, (1, 2))  # [B, T]
    question = capture.select(slice(0, 1))
    return ImageAttention(
        image_ratio=question.image_ratio[..., 0].numpy(),
        image_entropy=question.image_entropy[..., 0].numpy(),
        selected=selected.numpy(),
        question=ratio[..., 0].numpy(),
        answer=_nanmean(ratio[..., first:], answer[:, None, None], -1),
        drift=np.take_along_axis(drift, order.numpy(), 1),
        layers=capture.layers,
    )


def _head_mean(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return _nanmean(torch.from_numpy(values), torch.from_numpy(kept), (1, 2))


def _nanmean(values: Tensor, kept: Tensor, axes: int | tuple[int, ...]) -> np.ndarray:
    """Mean of the kept values; NaN without any."""
    return np.asarray(torch.where(kept, values, torch.nan).nanmean(axes))


def _joined(attentions: list[ImageAttention]) -> ImageAttention:
    """The questions of several batches; ``drift`` of shorter answers ends with NaN."""
    longest = max(attention.drift.shape[1] for attention in attentions)

    def join(name: str) -> np.ndarray:
        parts = [getattr(attention, name) for attention in attentions]
        if name == "drift":
            parts = [
                np.pad(part, ((0, 0), (0, longest - part.shape[1])), constant_values=np.nan)
                for part in parts
            ]
        return np.concatenate(parts)

    arrays = [field.name for field in fields(ImageAttention) if field.name != "layers"]
    return ImageAttention(**{name: join(name) for name in arrays}, layers=attentions[0].layers)
