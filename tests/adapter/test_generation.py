"""Generation with VRGA against an independent eager loop, and against itself in other shapes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.explicit import explicit_greedy
from tests.adapter.families import CACHE, CORE, IMAGE, LOOSE, ROWS, Video, build, greedy, logits

NEW = 6


@pytest.fixture(scope="module", params=CORE)
def family(request):
    return build(request.param)


@pytest.mark.parametrize("mode", ["boost", "mask"])
@pytest.mark.parametrize("gate", ["static", "dynamic"])
def test_equals_reweighting_stored_weights(family, gate, mode):
    inputs = family.prompt(*ROWS)
    plain = greedy(family.model, inputs, NEW)
    config = vrga_ext.VRGAConfig(**LOOSE, gate=gate, mode=mode, min_ratio=1.0)
    with vrga_ext.enable(family.model, config) as handle:
        ours = greedy(family.model, inputs, NEW)
    assert [len(region.images) for region in handle.regions] == [1, 1, 2]

    tokens = ours.sequences[:, -NEW:]
    explicit = explicit_greedy(family.model, inputs, tokens, handle.regions, config)
    torch.testing.assert_close(logits(ours), logits(explicit), atol=2e-5, rtol=1e-4)
    assert (logits(ours) - logits(plain))[1:].abs().amax((0, 2)).gt(1e-2).all()  # in every row


@pytest.mark.parametrize("gate", ["static", "dynamic"])
def test_batch_equals_single_rows(family, gate):
    together = family.prompt(*ROWS)
    width = together["input_ids"].shape[1]
    with vrga_ext.enable(family.model, **LOOSE, gate=gate) as handle:
        batch = greedy(family.model, together, NEW)
        regions = handle.regions
        first = 0
        for row, tokens in enumerate(ROWS):
            count = len(regions[row].images)
            single = family.prompt(tokens)
            pixels = together["pixel_values"]
            size = 1 if family.name == "llava" else 64  # rows of pixel_values per image
            single["pixel_values"] = pixels[first * size : (first + count) * size]
            first += count
            alone = greedy(family.model, single, NEW)
            padding = width - single["input_ids"].shape[1]
            torch.testing.assert_close(
                logits(alone)[:, 0], logits(batch)[:, row], atol=1e-4, rtol=1e-4
            )
            region = handle.regions[0]
            assert torch.equal(region.boosted + padding, regions[row].boosted)
            assert torch.equal(region.focus + padding, regions[row].focus)
            assert region.visual_heads == regions[row].visual_heads
            assert region.question_end + padding == regions[row].question_end


def test_regions_lie_in_their_own_image(family):
    inputs = family.prompt(*ROWS)
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        greedy(family.model, inputs, 2)
    for row, region in enumerate(handle.regions):
        image = (inputs["input_ids"][row] == IMAGE).nonzero().flatten()
        assert torch.equal(region.image_positions, image)
        assert set(region.focus.tolist()) <= set(region.boosted.tolist()) <= set(image.tolist())
        assert all(span.grid == (4, 4) for span in region.images)
    assert [region.grid for region in handle.regions] == [(4, 4), (4, 4), None]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_grids_of_different_images(name):
    family = build(name)
    inputs = family.prompt([5, (2, 6), 7, 8], [(5, 3), 9, (1, 4), 10])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        greedy(family.model, inputs, 2)
    assert [[span.grid for span in region.images] for region in handle.regions] == [
        [(2, 6)],
        [(5, 3), (1, 4)],
    ]


def test_frames_of_a_fast_video():
    """Frames that follow one another faster than the positions' unit of time share a position."""
    family = build("qwen2_5_vl")
    inputs = family.prompt([5, Video(frames=4, rows=2, columns=3), 7, 8])
    inputs["second_per_grid_ts"] = torch.tensor([0.1])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        greedy(family.model, inputs, 2)
    assert [span.grid for span in handle.regions[0].images] == [(2, 3)] * 4


def test_row_without_an_image_is_plain(family):
    rows = (ROWS[0], [5, 6, 7, 8, 9])
    inputs = family.prompt(*rows)
    plain = greedy(family.model, inputs, NEW)
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        ours = greedy(family.model, inputs, NEW)
    torch.testing.assert_close(logits(ours)[:, 1], logits(plain)[:, 1], atol=1e-5, rtol=1e-5)
    assert (logits(ours)[1:, 0] - logits(plain)[1:, 0]).abs().max() > 1e-2
    assert handle.regions[1].visual_heads == ()
    assert len(handle.regions[1].boosted) == 0


def test_question_end_per_row_and_single(family):
    inputs = family.prompt(*ROWS)
    width = inputs["input_ids"].shape[1]
    with vrga_ext.enable(
        family.model, **LOOSE, question_end=[width - 1, width - 3, width - 2]
    ) as handle:
        greedy(family.model, inputs, 2)
        ends, rows = [r.question_end for r in handle.regions], [r.efr for r in handle.regions]
    assert ends == [width - 1, width - 3, width - 2]
    for row, end in enumerate(ends):
        with vrga_ext.enable(family.model, **LOOSE, question_end=torch.tensor([end] * 3)) as handle:
            greedy(family.model, inputs, 2)
        assert handle.regions[row].question_rule == "given"
        torch.testing.assert_close(handle.regions[row].efr, rows[row], rtol=1e-4, atol=1e-8)


def test_sampling_follows_the_seed(family):
    inputs = family.prompt(*ROWS)
    runs = []
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        for _ in range(2):
            torch.manual_seed(7)
            runs.append(greedy(family.model, inputs, NEW, do_sample=True, num_return_sequences=2))
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert len(handle.regions) == len(ROWS)  # one per sample, not per returned sequence
    torch.manual_seed(7)
    plain = greedy(family.model, inputs, NEW, do_sample=True, num_return_sequences=2)
    with vrga_ext.enable(family.model, gamma=0.0):
        torch.manual_seed(7)
        zero = greedy(family.model, inputs, NEW, do_sample=True, num_return_sequences=2)
    assert torch.equal(plain.sequences, zero.sequences)


def test_beam_search_of_one_sample_reads_one_region(family):
    inputs = family.prompt(*ROWS[:2])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        greedy(family.model, inputs, 2)
        single = handle.regions
        greedy(family.model, inputs, NEW, num_beams=3)
        beams = handle.regions
    assert [r.boosted.tolist() for r in beams] == [r.boosted.tolist() for r in single]


def skip_unless_stock_equals_its_loop(model, inputs, how) -> None:
    """Some transformers releases cannot split a prompt with an image into chunks."""
    try:
        stock = logits(greedy(model, inputs, 8, **how))
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"this transformers release cannot do it without VRGA: {error}")
    if not torch.allclose(stock, logits(greedy(model, inputs, 8)), atol=1e-4):
        pytest.skip("this transformers release does not equal its own greedy loop")


@pytest.mark.parametrize("gamma", [0.0, 4.0])
@pytest.mark.parametrize(
    "how",
    [
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 5},
        {"prefill_chunk_size": 23},  # for the Qwen models the last chunk is one token
    ],
    ids=lambda how: "-".join(map(str, *how.items())),
)
def test_other_ways_of_generating_equal_the_greedy_loop(family, how, gamma):
    inputs = family.prompt(ROWS[0])
    skip_unless_stock_equals_its_loop(family.model, inputs, how)
    with vrga_ext.enable(family.model, **LOOSE | {"gamma": gamma}):
        loop = greedy(family.model, inputs, 8)
        ours = greedy(family.model, inputs, 8, **how)
        again = greedy(family.model, inputs, 8, **how)  # a static cache is reset and used again
    assert torch.equal(ours.sequences, loop.sequences)
    assert torch.equal(again.sequences, loop.sequences)
    torch.testing.assert_close(logits(ours), logits(loop), atol=1e-5, rtol=1e-5)


def test_region_hook_replaces_what_is_boosted(family):
    inputs = family.prompt(*ROWS)
    plain = greedy(family.model, inputs, NEW)
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        seen = []

        def nothing(sample, region):
            seen.append(sample)
            return replace(region, boosted=region.boosted[:0])

        handle.region_hook = nothing
        ours = greedy(family.model, inputs, NEW)
    assert seen == [0, 1, 2]
    assert torch.equal(logits(ours), logits(plain))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """The boost changes the logits by what it changes them in single precision."""
    family = build("qwen2_5_vl")
    inputs = family.prompt(*ROWS[:2])
    changes, found = [], []
    for kind in (torch.float32, dtype):
        family.model.to(kind)
        plain = logits(greedy(family.model, inputs, 2)).float()
        with vrga_ext.enable(family.model, **LOOSE) as handle:
            # The same heads and tokens in both.
            handle.region_hook = lambda row, region: found[row] if len(found) > row else region
            changes.append(logits(greedy(family.model, inputs, 2)).float()[1] - plain[1])
            found.extend(handle.regions)
    similarity = torch.nn.functional.cosine_similarity(*changes, dim=-1)
    assert (similarity > 0.8).all(), similarity


def test_question_in_the_middle_of_the_prompt(family):
    """R_img is over the keys that the question row attends to, not over the prompt."""
    inputs = family.prompt(*ROWS[:2])
    end = inputs["input_ids"].shape[1] - 4
    with vrga_ext.enable(family.model, **LOOSE, question_end=end) as handle:
        greedy(family.model, inputs, 2)
        over_attended = handle.regions
    with vrga_ext.enable(family.model, **LOOSE, question_end=end, ratio_keys="prompt") as handle:
        greedy(family.model, inputs, 2)
        over_prompt = handle.regions
    for row, (attended, prompt) in enumerate(zip(over_attended, over_prompt, strict=True)):
        length = int(inputs["attention_mask"][row].sum())
        expected = attended.image_ratio * length / (length - 3)
        torch.testing.assert_close(prompt.image_ratio, expected)
    exact = vrga_ext.VRGAConfig(**LOOSE, epsilon=1e-30)
    with vrga_ext.enable(family.model, exact, question_end=end) as handle:
        greedy(family.model, inputs, 2)
    torch.testing.assert_close(
        handle.regions[0].image_ratio, over_attended[0].image_ratio, rtol=1e-5, atol=1e-12
    )


def test_drafts_in_the_first_forward_call(family):
    """A prompt whose end occurred before: prompt lookup drafts tokens into the prefill."""
    inputs = family.prompt([5, 6, 7, 8, (4, 4), 9, 11, 5, 6])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        loop = greedy(family.model, inputs, NEW)
        regions = handle.regions
        looked_up = greedy(
            family.model, inputs, NEW, prompt_lookup_num_tokens=2, max_matching_ngram_size=2
        )
    assert torch.equal(looked_up.sequences, loop.sequences)
    assert torch.equal(handle.regions[0].boosted, regions[0].boosted)


def test_assisted_decoding_equals_the_greedy_loop(family):
    assistant = build(family.name, seed=1).model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE):
        loop = greedy(family.model, inputs, NEW)
        assisted = greedy(family.model, inputs, NEW, assistant_model=assistant)
    assert torch.equal(assisted.sequences, loop.sequences)


@pytest.mark.parametrize("how", ["positional", "inputs", "no mask"])
def test_forms_of_calling_generate(family, how):
    inputs = family.prompt(ROWS[0])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with vrga_ext.enable(family.model, **LOOSE):
        expected = family.model.generate(**inputs, **options)
        rest = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
        if how == "positional":
            ours = family.model.generate(inputs["input_ids"], **rest, **options)
        elif how == "inputs":
            ours = family.model.generate(
                inputs=inputs["input_ids"], input_ids=None, **rest, **options
            )
        else:
            del inputs["attention_mask"]
            ours = family.model.generate(**inputs, **options)
    assert torch.equal(ours, expected)


def test_positional_arguments_of_forward():
    family = build("llava")
    inputs = family.prompt(*ROWS[:2])
    model = family.model
    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        by_name = model(**inputs, **{CACHE: DynamicCache(config=model.config)})
        expected = handle.regions
        token = by_name.logits[:, -1:].argmax(-1)
        cache = copy.deepcopy(by_name[CACHE])
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        step = model(input_ids=token, attention_mask=mask, **{CACHE: cache}).logits
        values = (inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
        by_place = model(*values, None, DynamicCache(config=model.config))
        place_step = model(token, None, mask, None, by_place[CACHE]).logits
    assert [torch.equal(a.efr, b.efr) for a, b in zip(expected, handle.regions, strict=True)]
    torch.testing.assert_close(place_step, step)


def test_row_of_padding_alone():
    family = build("llava")
    inputs = family.prompt(ROWS[0], ROWS[0])
    inputs["attention_mask"][1] = 0
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        greedy(family.model, inputs, 2)
    assert len(handle.regions[0].boosted)
    assert not len(handle.regions[1].image_positions)


def test_masked_image_is_no_image():
    """An image that the attention mask hides has no part in the region."""
    family = build("llava")  # elsewhere the positions of a hidden image are not defined
    inputs = family.prompt([(4, 4), 5, (4, 4), 7, 8, 9])
    inputs["attention_mask"][0, :16] = 0
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        greedy(family.model, inputs, 2)
    assert handle.regions[0].image_positions.tolist() == list(range(17, 33))
