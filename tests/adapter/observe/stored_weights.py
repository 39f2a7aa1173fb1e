"""What an eager model stores, and captures held against it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from tests.adapter.families import greedy
from vrga_ext import Capture

STEPS = 5


def question_end(inputs) -> int:
    """The last column, a token of every row of ``ROWS``."""
    return inputs["input_ids"].shape[1] - 1


def attentions(family, inputs, new_tokens=STEPS, **kwargs):
    return greedy(family.model, inputs, new_tokens, output_attentions=True, **kwargs)


def assert_rows(capture: Capture, weights: list[torch.Tensor], image: torch.Tensor) -> None:
    """A capture against rows [S, L, H, keys] as stored by an eager model, before reweighting."""
    assert len(weights) == capture.positions.shape[1]
    rows = capture.image_rows(reweighted=False)
    for index, full in enumerate(weights):
        for sample in range(full.shape[0]):
            columns = image[sample].nonzero().flatten()
            a = full[sample, :, :, columns].double()
            attended = int(capture.attended[sample, index])
            assert attended == int((full[sample].amax((0, 1)) > 0).sum())
            share = a.sum(-1)
            inside = a / share[..., None]
            close: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5, "check_dtype": False}
            at = (sample, slice(None), slice(None), index)
            n = len(columns)
            seen = int((a.amax((0, 1)) > 0).sum())  # of a row within an image only a part
            assert seen == int(capture.image_keys[sample, index])
            torch.testing.assert_close(rows[at][..., :n], a, **close)
            assert not rows[at][..., n:].any()
            torch.testing.assert_close(capture.image_ratio[at], share * attended / seen, **close)
            torch.testing.assert_close(capture.image_share[at], share, **close)
            entropy = torch.special.entr(inside).sum(-1)
            torch.testing.assert_close(capture.image_entropy[at], entropy, **close)
            joint = torch.special.entr(a).sum(-1)
            torch.testing.assert_close(capture.joint_entropy[at], joint, **close)
            efr = entropy / (share * attended / seen)
            torch.testing.assert_close(capture.efr[at], efr, **(close | {"rtol": 1e-4}))


def assert_all_close(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for step, other in zip(ours, theirs, strict=True):
        for layer, weights in zip(step, other, strict=True):
            torch.testing.assert_close(layer, weights, atol=1e-5, rtol=1e-5)


def assert_same(ours, theirs, kind) -> None:
    for field in fields(kind):
        value, other = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(other, torch.Tensor):
            assert value.dtype == other.dtype
            assert torch.equal(value, other)
        elif field.name != "regions":
            assert value == other
