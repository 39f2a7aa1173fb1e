"""Properties of generation on prompts that hypothesis chooses."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.adapter.modes import StockCannot, subject
from tests.adapter.modes.base import ONE, Rows, Run, assert_close, stock

# The same examples in every run, and no limit of time: the machine may be busy.
repeatable = settings(max_examples=25, derandomize=True, deadline=None)
FAMILIES = ("qwen2_5_vl", "llava")  # grids of every size in rotary positions; one size
families = pytest.mark.parametrize("name", FAMILIES)
gammas = st.sampled_from([0.5, 2.0, 8.0])
configs = st.fixed_dictionaries(
    {
        "gate": st.sampled_from(["static", "dynamic"]),
        "suppress": st.sampled_from([1.0, 0.5, 0.0]),
        "focus_min_tokens": st.integers(1, 10),
        "widen": st.integers(0, 2),
    }
)


@st.composite
def prompts(draw, name: str, rows: int = 3) -> Rows:
    """Rows of text and images, the last item text; at least one image in the prompt."""
    side = st.integers(1, 4)
    image = (
        st.just((4, 4)) if name == "llava" else st.tuples(side, side).filter(lambda g: g > (1, 2))
    )
    text = st.lists(st.integers(5, 60), min_size=1, max_size=4)
    items = st.lists(st.one_of(text, image.map(lambda grid: [grid])), max_size=4)
    row = st.tuples(items, text).map(lambda parts: tuple(itertools.chain(*parts[0], parts[1])))
    drawn = draw(st.lists(row, min_size=1, max_size=rows))
    assume(any(has_image(row) for row in drawn))
    return tuple(drawn)


def has_image(row: tuple) -> bool:
    return any(isinstance(item, tuple) for item in row)


def assert_same_row(ours: Run, row: int, other: Run, index: int, padding: int) -> None:
    """A row of one prompt is a row of another one, ``padding`` columns further to the right."""
    assert_close(ours.logits[:, row], other.logits[:, index], 1e-4)
    region, expected = ours.regions[row], other.regions[index]
    assert region.visual_heads == expected.visual_heads
    for name in ("image_positions", "focus", "boosted"):
        assert torch.equal(getattr(region, name), getattr(expected, name) + padding)


@families
@repeatable
@given(data=st.data(), gamma=gammas, config=configs)
def test_rows_are_independent(name, data, gamma, config):
    """A row is what it is alone, in whichever order and company it stands."""
    ours = subject(name)
    rows = data.draw(prompts(name))
    order = data.draw(st.permutations(range(len(rows))))
    batch = ours.run(rows, gamma, config=config)
    permuted = ours.run(tuple(rows[row] for row in order), gamma, config=config)
    plain = ours.run(rows, None)
    columns = ours.family.image_columns(ours.prompt(rows))
    for row, items in enumerate(rows):
        region = batch.regions[row]
        assert torch.equal(region.image_positions, columns[row].nonzero().flatten())
        assert torch.isin(region.boosted, region.image_positions).all()
        assert torch.isin(region.focus, region.boosted).all()
        assert_same_row(permuted, order.index(row), batch, row, 0)
        if has_image(items):
            alone = ours.run((items,), gamma, config=config)
            padding = columns.shape[1] - ours.prompt((items,))["input_ids"].shape[1]
            assert_same_row(batch, row, alone, 0, padding)
        else:
            assert_close(batch.logits[:, row], plain.logits[:, row], 1e-4)


@families
@repeatable
@given(data=st.data(), gate=st.sampled_from(["static", "dynamic"]))
def test_gamma_zero_changes_nothing(name, data, gate):
    rows = data.draw(prompts(name))
    zero = subject(name).run(rows, 0.0, config={"gate": gate})
    assert torch.equal(zero.logits, subject(name).run(rows, None).logits)


@families
def test_chunked_prefill_equals_unchunked(name):
    ours = subject(name)
    try:
        plain = ours.run(ONE, None).logits
        stock(plain, lambda: ours.run(ONE, None, prefill_chunk_size=5).logits)
    except StockCannot as reason:
        pytest.skip(f"chunked prefill of {name}: {reason}")

    @repeatable
    @given(data=st.data(), gamma=gammas, config=configs)
    def equal(data, gamma, config):
        rows = data.draw(prompts(name, rows=2))
        width = ours.prompt(rows)["input_ids"].shape[1]
        size = data.draw(st.integers(1, width))
        whole = ours.run(rows, gamma, config=config)
        chunked = ours.run(rows, gamma, config=config, prefill_chunk_size=size)
        for row in range(len(rows)):
            assert_same_row(chunked, row, whole, row, 0)

    equal()
