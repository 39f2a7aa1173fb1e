"""Generation with VRGA against an independent eager loop, and against itself in other shapes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.checks import notices, skip_unless_stock_equals_its_loop
from tests.adapter.explicit import explicit_greedy
from tests.adapter.families import CACHE, IMAGE, LOOSE, ROWS, Video, build, greedy, logits
from tests.adapter.loops import greedy_loop

NEW = 6


@pytest.mark.parametrize("weights", [{}, {"gamma": 0.0, "suppress": 0.0}])
@pytest.mark.parametrize("gate", ["static", "dynamic"])
def test_equals_reweighting_stored_weights(family, gate, weights):
    inputs = family.prompt(*ROWS)
    plain = greedy(family.model, inputs, NEW)
    config = vrga_ext.VRGAConfig(**LOOSE | weights, gate=gate, min_ratio=1.0)
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


@pytest.mark.parametrize("how", [{"do_sample": True}, {"num_beams": 3}], ids=["sample", "beams"])
def test_several_sequences_of_one_prompt(family, how):
    """Each returned sequence has the probability that a plain loop over its tokens gives it."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    options = how | {"num_return_sequences": 2, "max_new_tokens": 4, "min_new_tokens": 4}
    options |= {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    options |= {"output_logits": True}

    def run():
        torch.manual_seed(3)
        return model.generate(**inputs, **options)

    plain = run()
    with vrga_ext.enable(model, gamma=0.0):
        zero = run()
    assert torch.equal(zero.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(zero.logits, plain.logits, strict=True))
    with vrga_ext.enable(model, **LOOSE) as handle:
        ours = run()
        assert len(handle.regions) == 1
        for row, sequence in enumerate(ours.sequences):
            _, loop = greedy_loop(model, inputs, 4, forced=sequence[-4:])
            if "num_beams" in how:
                chosen = loop[:, 0].log_softmax(-1).gather(1, sequence[-4:, None]).sum()
                torch.testing.assert_close(ours.sequences_scores[row], chosen, atol=1e-4, rtol=1e-4)
            else:
                torch.testing.assert_close(logits(ours)[:, row], loop[:, 0], atol=1e-5, rtol=1e-5)


def test_weights_of_sdpa_are_not_returned_and_it_is_said(family):
    inputs = family.prompt(ROWS[0])
    options = {"output_attentions": True, "output_hidden_states": True}
    plain = greedy(family.model, inputs, 2, output_hidden_states=True)
    with (
        vrga_ext.enable(family.model, gamma=0.0, question_end=20),
        warnings.catch_warnings(record=True) as record,
    ):
        warnings.simplefilter("always")
        ours = greedy(family.model, inputs, 2, **options)
        greedy(family.model, inputs, 2, **options)
    (notice,) = notices(record)
    assert notice.startswith("attention weights are not returned: 'sdpa'")
    for step, expected in zip(ours.hidden_states, plain.hidden_states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, expected, strict=True))


def test_tuples_instead_of_outputs(family):
    """``return_dict=False`` in a loop of one's own."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        tokens, expected = greedy_loop(model, inputs, 2)
        cache = DynamicCache(config=model.config)
        first = model(**inputs, **{CACHE: cache}, return_dict=False)
        second = model(input_ids=tokens[:, :1], **{CACHE: cache}, return_dict=False)
    assert isinstance(first, tuple)
    torch.testing.assert_close(second[0][:, -1], expected[1], atol=1e-5, rtol=1e-5)


def test_decoding_loop_given_to_generate(family):
    """``custom_generate``: a callable that is handed the prepared inputs."""

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return model._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE):
        tokens, expected = greedy_loop(family.model, inputs, 5)
        ours = greedy(family.model, inputs, 5, custom_generate=loop)
    assert torch.equal(ours.sequences[:, -5:], tokens)
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=1e-5)


def test_nothing_found_in_an_image_is_said_once(said):
    """Every token of a single row of patches may be a border sink, if the threshold says so."""
    family = build("qwen2_5_vl")
    inputs = family.prompt([5, (1, 4), 7, 8], ROWS[0])
    plain = logits(greedy(family.model, inputs, 3))
    end = inputs["input_ids"].shape[1] - 1
    config = LOOSE | {"border_max_share": 1.0, "question_end": end}
    with vrga_ext.enable(family.model, **config) as handle:
        runs = [logits(greedy(family.model, inputs, 3)) for _ in range(2)]
    assert [len(region.boosted) > 0 for region in handle.regions] == [False, True]
    assert said() == ["VRGA is not applied to a sample: no token of its image stands out"]
    for run in runs:
        torch.testing.assert_close(run[:, 0], plain[:, 0], atol=1e-5, rtol=1e-5)
        assert (run[1:, 1] - plain[1:, 1]).abs().max() > 1e-3
