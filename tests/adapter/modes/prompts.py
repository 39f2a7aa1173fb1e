"""What stands in a prompt: several images, video, padded rows, rows without an image."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.adapter.families import greedy, logits
from tests.adapter.modes.base import (
    CLIP,
    GAMMA,
    IMAGE_SIZE,
    MIXED,
    NEW,
    ONE,
    Rows,
    Run,
    Subject,
    assert_boosted,
    assert_close,
    assert_same_regions,
    mode,
    stock,
)
from tests.adapter.modes.decoding import equals_a_manual_loop

TWO_IMAGES: Rows = ((5, IMAGE_SIZE, 6, IMAGE_SIZE, 7, 8, 9, 10),)
VIDEO: Rows = ((5, 6, CLIP, 7, 8, 9, 10),)
IMAGE_AND_VIDEO: Rows = ((5, IMAGE_SIZE, 6, CLIP, 7, 8, 9, 10),)
SOME_WITHOUT: Rows = (*ONE, (11, 12, 13, 14, 15))


def _media(subject: Subject, rows: Rows) -> None:
    equals_a_manual_loop(subject, rows)
    (region,) = subject.run(rows, GAMMA).regions
    spans = [(span.length, span.grid) for span in region.images]
    assert spans == subject.family.spans(list(rows[0]))
    columns = subject.family.image_columns(subject.prompt(rows))[0].nonzero().flatten()
    assert torch.equal(region.image_positions, columns)
    assert torch.isin(region.boosted, columns).all()
    assert len(region.boosted)


@mode("several images", "two images in one row", column="several images")
def several_images(subject: Subject) -> None:
    _media(subject, TWO_IMAGES)


@mode("video", "a video", column="video", needs=["video"])
def video(subject: Subject) -> None:
    _media(subject, VIDEO)


@mode("image and video", "both in one row", column="video", needs=["image", "video"])
def image_and_video(subject: Subject) -> None:
    _media(subject, IMAGE_AND_VIDEO)


def alone(subject: Subject, rows: Rows, row: int) -> Run:
    """The plain loop on one row; without VRGA it equals the row's part of the batch."""
    single = (rows[row],)
    loop = subject.run(single, None).logits
    stock(loop[:, 0], lambda: subject.run(rows, None).logits[:, row])
    return subject.run(single, GAMMA)


@mode("padded rows", "left padding, images in other columns of each row", column="batches")
def padded_rows(subject: Subject) -> None:
    ours = subject.run(MIXED, GAMMA)
    width = subject.prompt(MIXED)["input_ids"].shape[1]
    for row in range(len(MIXED)):
        single = alone(subject, MIXED, row)
        assert torch.equal(ours.tokens[row], single.tokens[0])
        assert_close(ours.logits[:, row], single.logits[:, 0], 1e-4)
        padding = width - subject.prompt((MIXED[row],))["input_ids"].shape[1]
        region, expected = ours.regions[row], single.regions[0]
        assert region.visual_heads == expected.visual_heads != ()
        assert torch.equal(region.boosted, expected.boosted + padding)
        assert torch.equal(region.image_positions, expected.image_positions + padding)


@mode("rows without an image", "an image in one row, none in another", column="batches")
def rows_without_an_image(subject: Subject) -> None:
    single = alone(subject, SOME_WITHOUT, 0)
    plain, zero, ours = (subject.run(SOME_WITHOUT, gamma) for gamma in (None, 0.0, GAMMA))
    assert torch.equal(zero.logits, plain.logits)
    assert_boosted(ours.logits, plain.logits, rows=[0])
    assert_close(ours.logits[:, 0], single.logits[:, 0], 1e-4)
    assert_close(ours.logits[:, 1], plain.logits[:, 1])
    assert_same_regions(ours.regions[:1], single.regions)
    assert ours.regions[1].visual_heads == ()
    assert not len(ours.regions[1].image_positions)


@mode("embeddings", "`inputs_embeds` with the pictures merged, and the ids", column="embeddings")
def embeddings(subject: Subject) -> None:
    inputs = subject.prompt(MIXED)
    seen: dict[str, Tensor] = {}
    hook = subject.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        subject.model(**inputs)
    hook.remove()
    merged = {name: t for name, t in inputs.items() if not t.is_floating_point()}
    merged["inputs_embeds"] = seen["inputs_embeds"]

    def run(gamma: float | None) -> Tensor:
        with subject.enabled(gamma, merged["input_ids"].shape[1] - 1):
            return logits(greedy(subject.model, merged, NEW))

    loop = {gamma: subject.run(MIXED, gamma).logits for gamma in (None, GAMMA)}
    plain = stock(loop[None], lambda: run(None))
    assert torch.equal(run(0.0), plain)
    assert_close(run(GAMMA), loop[GAMMA])
    assert_boosted(loop[GAMMA], loop[None])
