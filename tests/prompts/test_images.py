"""Image tokens, images and grids of a prompt row."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from vrga_ext.prompts.images import (
    config_grid,
    image_mask,
    image_span_mask,
    image_spans,
)


def row(text: str) -> torch.Tensor:
    """'.' is text, '#' is an image token."""
    return torch.tensor([c == "#" for c in text], dtype=torch.bool)


def mrope(*items: int | tuple[int, int]) -> torch.Tensor:
    """Positions [3, S] as a multi-axis rotary model numbers text runs and image grids."""
    columns, position = [], 0
    for item in items:
        if isinstance(item, int):
            columns += [[position + i] * 3 for i in range(item)]
            position += item
        else:
            height, width = item
            columns += [
                [position, position + y, position + x] for y in range(height) for x in range(width)
            ]
            position += max(item)
    return torch.tensor(columns).T


def spans_of(image, positions, fixed_grid, image_span="tokens"):
    return image_spans(image, image_span_mask(image[None], [image_span])[0], positions, fixed_grid)


def test_image_mask():
    ids = torch.tensor([[1, 5, 5, 2, 9]])
    assert image_mask(ids, (5,)).tolist() == [[False, True, True, False, False]]
    assert image_mask(ids, (5, 9)).tolist() == [[False, True, True, False, True]]
    assert not image_mask(ids, ()).any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("..##.", [1, 2, 3]),
        ("##..#", [0, 1, 3, 4]),
        ("", []),
    ],
)
def test_vision_span_counts_the_token_before(text, expected):
    mask = row(text)[None]
    assert image_span_mask(mask, ["vision_span"])[0].nonzero().flatten().tolist() == expected
    assert image_span_mask(mask, ["tokens"]) is mask


def test_spans_from_positions():
    mask = row("..######.####")
    positions, spans = spans_of(mask, mrope(2, (2, 3), 1, (4, 1)), None)
    assert positions.tolist() == [2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    assert [tuple(span) for span in spans] == [(0, 6, 0, (2, 3)), (6, 4, 0, (4, 1))]


def test_adjacent_images_are_told_apart_by_time():
    positions, spans = spans_of(row(".########"), mrope(1, (2, 2), (2, 2)), None)
    assert [tuple(span) for span in spans] == [(0, 4, 0, (2, 2)), (4, 4, 0, (2, 2))]
    assert positions.tolist() == list(range(1, 9))


@pytest.mark.parametrize("size", [(2, 3), (1, 4), (4, 1)])
def test_frames_that_share_a_time_are_told_apart(size):
    frame = mrope(1, size)[:, 1:]
    positions = torch.cat([mrope(1), frame, frame, frame + torch.tensor([[1], [0], [0]])], 1)
    n = math.prod(size)
    _, spans = spans_of(row("." + "#" * 3 * n), positions, None)
    assert [tuple(span) for span in spans] == [(start, n, 0, size) for start in (0, n, 2 * n)]


def test_positions_that_count_tokens_give_no_grid():
    _, spans = spans_of(row(".####."), mrope(6), None)
    assert [tuple(span) for span in spans] == [(0, 4, 0, None)]


def test_positions_that_are_no_rectangle_give_no_grid():
    positions = mrope(1, (2, 3), 1)
    positions[2, 4] += 1
    _, spans = spans_of(row(".######."), positions, None)
    assert spans[0].grid is None


def test_fixed_grid_divides_a_run():
    _, spans = spans_of(row(".########."), None, (2, 2))
    assert [tuple(span) for span in spans] == [(0, 4, 0, (2, 2)), (4, 4, 0, (2, 2))]
    _, spans = spans_of(row(".#####."), None, (2, 2))
    assert [tuple(span) for span in spans] == [(0, 5, 0, None)]


def test_lead_of_a_span():
    positions, spans = spans_of(row(".####.####"), mrope(1, (2, 2), 1, (2, 2)), None, "vision_span")
    assert positions.tolist() == list(range(10))
    assert [tuple(span) for span in spans] == [(0, 5, 1, (2, 2)), (5, 5, 1, (2, 2))]


@pytest.mark.parametrize(
    ("vision", "pinpoints", "expected"),
    [
        ({"image_size": 336, "patch_size": 14}, None, (24, 24)),
        ({"image_size": 336, "patch_size": 14}, [[336, 672]], None),
        ({"image_size": 336, "patch_size": 14, "spatial_merge_size": 2}, None, None),
        ({"patch_size": 14}, None, None),
        ({"image_size": [336, 672], "patch_size": [14, 14]}, None, (24, 48)),
        ({"image_size": 448, "patch_size": 14, "hidden_stride": 2}, None, (16, 16)),
        ({"image_size": 448, "patch_size": 14, "spatial_merge_size": 2}, None, None),
        ({"image_size": 14, "patch_size": 28}, None, None),
    ],
)
def test_grid_from_the_configuration(vision, pinpoints, expected):
    config = SimpleNamespace(
        vision_config=SimpleNamespace(**vision), image_grid_pinpoints=pinpoints
    )
    assert config_grid(config) == expected


@pytest.mark.parametrize(
    ("merging", "expected"),
    [
        ({"downsample_ratio": 0.5}, (16, 16)),
        ({"downsample_factor": 2}, (16, 16)),
        ({"scale_factor": 4}, (8, 8)),
        ({"scale_factor": 3}, None),
        ({"mm_tokens_per_image": 256}, (16, 16)),
        ({"mm_tokens_per_image": 255}, None),
        ({"spatial_merge_size": 2}, None),
        ({"num_query_tokens": 32}, None),
        ({"latent_query_num": 64}, None),
    ],
)
def test_grid_of_merged_patches(merging, expected):
    vision = SimpleNamespace(image_size=448, patch_size=14)
    assert config_grid(SimpleNamespace(vision_config=vision, **merging)) == expected
