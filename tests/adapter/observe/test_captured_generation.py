"""``capture`` in every way of generating, and what a recording keeps."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import StaticCache

import vrga_ext
from tests.adapter.checks import skip_unless_stock_equals_its_loop
from tests.adapter.families import (
    CACHE,
    IMAGE,
    LOOSE,
    ROWS,
    VIDEO,
    VISION_END,
    VISION_START,
    build,
    greedy,
)
from tests.adapter.observe.stored_weights import (
    STEPS,
    assert_all_close,
    assert_rows,
    assert_same,
    attentions,
    question_end,
)
from vrga_ext import Capture

MARKS = [IMAGE, VIDEO, VISION_START, VISION_END]  # not to be written where a text is read again


def test_rows_that_moved_to_other_samples_are_left_out(family):
    model, inputs = family.model, family.prompt(ROWS[0], ROWS[0])
    end = question_end(inputs)
    with (
        vrga_ext.enable(model, **LOOSE, question_end=end) as handle,
        vrga_ext.capture(model) as recording,
        torch.no_grad(),
    ):
        output = model(**inputs, use_cache=True)
        output[CACHE].batch_select_indices(torch.tensor([1]))
        model.model.rope_deltas = model.model.rope_deltas[[1]]
        model(input_ids=torch.tensor([[9]]), **{CACHE: output[CACHE]})
    (notice,) = handle.notices
    assert notice.startswith("capture leaves out what follows")
    assert recording.last.positions.tolist() == [[end], [end]]


def test_copies_that_were_dropped_are_left_out(family):
    model, inputs = family.model, family.prompt(ROWS[0])
    with vrga_ext.capture(model) as recording, torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
        deltas = getattr(model.model, "rope_deltas", None)
        for move, argument, count in (
            (cache.batch_repeat_interleave, 3, 3),
            (cache.batch_select_indices, torch.tensor([1, 2]), 2),
        ):
            move(argument)
            if deltas is not None:
                model.model.rope_deltas = deltas.expand(count, 1)
            model(input_ids=torch.arange(9, 9 + count)[:, None], **{CACHE: cache})
    assert recording.last.token_ids[:, 1:].tolist() == [[9], [10], [11]]


def test_capture_begins_after_rows_were_repeated(family):
    model = family.model
    inputs = family.prompt(ROWS[0], ROWS[0])
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
        cache.batch_repeat_interleave(2)
        if getattr(model.model, "rope_deltas", None) is not None:
            model.model.rope_deltas = model.model.rope_deltas.repeat_interleave(2, 0)
        with vrga_ext.capture(model) as recording:
            model(input_ids=torch.arange(9, 13)[:, None], **{CACHE: cache})
    assert recording.last.token_ids.tolist() == [[9], [10], [11], [12]]
    assert recording.last.copies == 2


def test_beams(family, eager):
    inputs = family.prompt(*ROWS)
    options = {"num_beams": 3, "num_return_sequences": 2, "suppress_tokens": MARKS}
    plain, output = (
        greedy(family.model, inputs, STEPS, **options),
        attentions(eager, inputs, **options),
    )
    with vrga_ext.capture(family.model, rows="all") as recording:
        captured = greedy(family.model, inputs, STEPS, **options)
    assert torch.equal(captured.sequences, plain.sequences)
    capture = recording.last
    assert capture.copies == 3
    assert len(capture.regions) == 3
    assert_all_close(capture.as_attentions()[1:], output.attentions[1:])
    # Each returned sequence, against its own tokens read in one go.
    sequences = capture.follow_beams(captured.beam_indices)
    assert torch.equal(sequences.token_ids[:, 1:], captured.sequences[:, -STEPS:-1])
    mask = inputs["attention_mask"].repeat_interleave(2, 0)
    read = torch.cat([mask, mask.new_ones(6, STEPS)], 1)
    types = inputs["mm_token_type_ids"].repeat_interleave(2, 0)
    again = {
        "input_ids": captured.sequences,
        "attention_mask": read,
        "mm_token_type_ids": torch.nn.functional.pad(types, (0, STEPS)),
        "image_grid_thw": torch.cat(
            [inputs["image_grid_thw"][i] for i in ([0, 0, 1, 1], [2, 3, 2, 3])]
        ),
        "pixel_values": _pixels_of_twos(inputs),
    }
    with torch.no_grad():
        weights = torch.stack(eager.model(**again, output_attentions=True).attentions, 1)
    rows = sequences.reweighted_rows()
    for index in range(1, STEPS):
        column = int(sequences.positions[0, index])
        found = rows[:, :, :, index, : column + 1]
        wanted = weights[:, :, :, column, : column + 1]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def _pixels_of_twos(inputs):
    """Pixels of the three rows' images (one, one, two), each row twice."""
    first, second, *third = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(1).tolist())
    return torch.cat([first, first, second, second, *third, *third])


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 7},
        {"prompt_lookup_num_tokens": 3},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_ways_of_generating(family, eager, options):
    if "prefill_chunk_size" in options:
        skip_unless_stock_equals_its_loop(family.model, family.prompt(ROWS[1]), options)
    options = options | {"suppress_tokens": MARKS}
    inputs = family.prompt(ROWS[0] if "prompt_lookup_num_tokens" in options else ROWS[1])
    torch.manual_seed(0)
    plain = greedy(family.model, inputs, STEPS, **options)
    with vrga_ext.capture(family.model, rows=True) as recording:
        torch.manual_seed(0)
        captured = greedy(family.model, inputs, STEPS, **options)
    assert torch.equal(captured.sequences, plain.sequences)
    capture = recording.last
    tokens = captured.sequences
    assert torch.equal(capture.token_ids[:, 1:], tokens[:, inputs["input_ids"].shape[1] : -1])
    # The eager model reads what was written; its rows are those of every generated token.
    width = tokens.shape[1] - inputs["input_ids"].shape[1]
    again = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
    copies = tokens.shape[0]
    for name in ("attention_mask", "mm_token_type_ids"):
        fill = int(name == "attention_mask")
        again[name] = torch.nn.functional.pad(inputs[name], (0, width), value=fill)
        again[name] = again[name].repeat(copies, 1)
    for name in ("pixel_values", "image_grid_thw"):
        again[name] = inputs[name].repeat(copies, 1)
    with torch.no_grad():
        read = eager.model(input_ids=tokens, **again, output_attentions=True)
    weights = torch.stack(read.attentions, 1)  # [S, L, H, q, keys]
    columns = capture.positions[0].tolist()
    assert columns == list(range(inputs["input_ids"].shape[1] - 1, tokens.shape[1] - 1))
    image = (inputs["input_ids"] == IMAGE).expand(copies, -1)
    assert_rows(capture, [weights[:, :, :, column] for column in columns], image)


def test_loops_turns_and_copies_of_a_cache():
    family = build("llava")
    inputs = family.prompt(ROWS[0])
    token = torch.tensor([[9]])

    def step(cache, ids):
        return family.model(input_ids=ids, **{CACHE: cache}, use_cache=True)

    with vrga_ext.capture(family.model) as recording, torch.no_grad():
        cache = family.model(**inputs, use_cache=True)[CACHE]
        step(cache, token)
        other = copy.deepcopy(cache)
        step(cache, token + 1)
        step(other, token + 2)
        step(other, token + 3)
        both = recording.captures
        new = torch.tensor([[7, 8, 9]])
        mask = torch.ones(1, cache.get_seq_length() + 3, dtype=torch.long)
        family.model(input_ids=new, attention_mask=mask, **{CACHE: cache}, use_cache=True)
        step(cache, token)
    assert [c.generated.token_ids[0].tolist() for c in both] == [[9, 10], [9, 11, 12]]
    first, second = recording.last, recording.captures
    assert len(second) == 3
    assert first.token_ids[0].tolist() == [9, 9]
    assert first.positions[0, 0] == cache.get_seq_length() - 2
    assert torch.equal(both[0].image_ratio, second[0].image_ratio)


def test_a_capture_that_goes_on_after_it_was_looked_at(family):
    """The rows that were kept for it become views of the capture's: memory is used once."""
    inputs = family.prompt(*ROWS)
    looked: list[Capture] = []

    def look(input_ids, scores, **kwargs):
        looked.append(recording.last)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    for rows in (True, "all"):
        options: dict[str, Any] = {"num_beams": 2, "suppress_tokens": MARKS}
        with vrga_ext.capture(family.model, rows=rows) as recording:
            greedy(family.model, inputs, STEPS, **options)
        plain = recording.last
        with vrga_ext.capture(family.model, rows=rows) as recording:
            greedy(family.model, inputs, STEPS, stopping_criteria=[look], **options)
        assert [c.positions.shape[1] for c in looked] == list(range(1, STEPS + 1))
        assert_same(recording.last, plain, Capture)
        (session,) = recording._recorder.sessions
        kept = [row.attention.untyped_storage() for row in session.rows.values()]
        assert {s.data_ptr() for s in kept} == {recording.last.rows.untyped_storage().data_ptr()}
        looked.clear()


def test_a_recording_does_not_keep_the_model():
    own = build("llava")
    model = weakref.ref(own.model)
    with vrga_ext.capture(own.model, rows=True) as recording:
        greedy(own.model, own.prompt(*ROWS), 2)
    del own
    gc.collect()
    assert model() is None
    assert recording.last.rows is not None


def test_static_cache_in_a_loop(family):
    inputs = family.prompt(ROWS[0])
    columns = inputs["input_ids"].shape[1]
    cache = StaticCache(config=family.model.config.get_text_config(), max_cache_len=columns + 4)
    with vrga_ext.capture(family.model, rows="all") as recording, torch.no_grad():
        output = family.model(**inputs, **{CACHE: cache}, use_cache=True)
        for _ in range(2):
            token = output.logits[:, -1:].argmax(-1)
            output = family.model(input_ids=token, **{CACHE: cache}, use_cache=True)
    capture = recording.last
    assert capture.attended[0].tolist() == [columns, columns + 1, columns + 2]
    ones = torch.ones(1, len(capture.layers), capture.gate.shape[2], 3)
    assert capture.rows is not None
    torch.testing.assert_close(capture.rows.sum(-1), ones)
