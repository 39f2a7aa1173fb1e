"""How a prompt may come: as embeddings, with videos, padded, in any form of calling."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.families import CACHE, IMAGE, LOOSE, ROWS, Video, build, greedy, logits
from tests.adapter.loops import greedy_loop
from vrga_ext import VRGAWarning

QWEN = ("qwen2_vl", "qwen2_5_vl")


NEW = 5


@pytest.fixture(scope="module", params=QWEN)
def qwen(request):
    return build(request.param)


def merged(family, inputs):
    """The prompt as embeddings with the image merged, and what else the model is to be given."""
    seen = {}

    def keep(module, args, kwargs):
        seen.update(kwargs)

    hook = family.model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        family.model(**inputs)
    hook.remove()
    rest = {"inputs_embeds": seen["inputs_embeds"], "attention_mask": inputs["attention_mask"]}
    if family.name != "llava":
        rest["position_ids"] = seen["position_ids"]
    return rest


@pytest.mark.parametrize("gamma", [0.0, 4.0])
@pytest.mark.parametrize("told_by", ["mask", "ids"])
def test_generate_from_embeddings(family, told_by, gamma):
    """Embeddings of a batch with an image mask, or with the ids, are boosted as ids alone are."""
    model = family.model
    inputs = family.prompt(*ROWS)
    embeds = merged(family, inputs)
    embeds.pop("position_ids", None)  # generate() makes its own
    if told_by == "ids":
        embeds["input_ids"] = inputs["input_ids"]
        embeds |= {k: v for k, v in inputs.items() if k in ("mm_token_type_ids", "image_grid_thw")}
    stock = greedy(model, embeds, NEW)
    with vrga_ext.enable(model, **LOOSE | {"gamma": gamma}) as handle:
        expected = greedy(model, inputs, NEW)
        regions = handle.regions
        mask = family.image_columns(inputs)
        if told_by == "mask":
            with handle.image_mask(mask):
                ours = greedy(model, embeds, NEW)
        else:
            ours = greedy(model, embeds, NEW)
    for ours_region, region in zip(handle.regions, regions, strict=True):
        assert torch.equal(ours_region.image_positions, region.image_positions)
        assert ours_region.question_rule == region.question_rule == "last_token"
    if gamma == 0.0:
        assert torch.equal(logits(ours), logits(stock))
    elif told_by == "ids" or family.name == "llava":  # else Qwen models count tokens as positions
        torch.testing.assert_close(logits(ours), logits(expected), atol=1e-5, rtol=1e-5)
        assert [r.boosted.tolist() for r in handle.regions] == [r.boosted.tolist() for r in regions]
    else:
        assert (logits(ours) - logits(stock))[1:].abs().amax((0, 2)).gt(1e-3).all()


def test_loop_from_embeddings(family):
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        tokens, expected = greedy_loop(model, inputs, 3)
        region = handle.regions[0]
        start = merged(family, inputs)
        cache, steps = DynamicCache(config=model.config), []
        with handle.image_mask(family.image_columns(inputs)):
            steps.append(model(**start, **{CACHE: cache}).logits[:, -1])
            for index in range(2):  # decode steps are no prompts, inside the block or outside it
                step = {"input_ids": tokens[:, index : index + 1], CACHE: cache}
                steps.append(model(**step).logits[:, -1])
    torch.testing.assert_close(torch.stack(steps), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(handle.regions[0].boosted, region.boosted)
    assert handle.regions[0].grid == (4, 4)


def test_image_mask_ends_with_its_block(family):
    model = family.model
    start = merged(family, family.prompt(ROWS[0]))
    plain = greedy(model, start, 3)
    with vrga_ext.enable(model, **LOOSE, question_end=20) as handle:
        mask = family.image_columns(family.prompt(ROWS[0]))
        with handle.image_mask(mask):
            boosted = greedy(model, start, 3)
        with pytest.warns(VRGAWarning, match=r"without input_ids .* handle.image_mask"):
            after = greedy(model, start, 3)
    assert torch.equal(logits(after), logits(plain))
    assert not torch.equal(logits(boosted), logits(plain))


def test_image_mask_stands_for_the_ids(family):
    """It also says where the image is when ids are given."""
    inputs = family.prompt(ROWS[0])
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    mask[0, 5:9] = True
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        with handle.image_mask(mask):
            greedy(family.model, inputs, 2)
        assert handle.regions[0].image_positions.tolist() == [5, 6, 7, 8]
        greedy(family.model, inputs, 2)
    assert len(handle.regions[0].image_positions) == 16


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[True]], TypeError, r"mask: wanted a bool tensor \[B, S\], got list"),
        (torch.ones(1, 3), TypeError, "got torch.float32"),
        (torch.ones(3, dtype=torch.bool), ValueError, r"\[B, S\], got shape \(3,\)"),
        (torch.ones(1, 3, dtype=torch.bool), ValueError, r"image_mask: .* shape \(1, 9\), got"),
    ],
)
def test_image_mask_that_does_not_fit(mask, error, message):
    family = build("llava")
    embeds = {"inputs_embeds": torch.randn(1, 9, 64)}
    plain = greedy(family.model, embeds, 3)
    with vrga_ext.enable(family.model, **LOOSE, question_end=8) as handle:
        with pytest.raises(error, match=message), handle.image_mask(mask):
            greedy(family.model, embeds, 3)
        with handle.image_mask(torch.zeros(1, 9, dtype=torch.bool)):  # no image is no error
            ours = greedy(family.model, embeds, 3)
    assert torch.equal(logits(ours), logits(plain))


def test_ids_of_another_length_do_not_tell_where_the_image_is(family):
    start = merged(family, family.prompt(ROWS[0])) | {"input_ids": torch.tensor([[IMAGE, 5]])}
    start.pop("position_ids", None)
    with (
        vrga_ext.enable(family.model, **LOOSE),
        pytest.warns(VRGAWarning, match="without input_ids"),
    ):
        greedy(family.model, start, 2)


MIXED = (
    [5, (2, 3), 6, Video(2, 2, 4), 7, 8],
    [5, 6, 7, 8],
    [Video(1, 3, 2), 9, (4, 4), (1, 5), 10, 11, 12],
)


@pytest.mark.parametrize("gamma", [0.0, 4.0])
def test_images_and_videos_in_a_padded_batch(qwen, gamma):
    """Rows with both, with neither, in any order: each as it is alone."""
    model = qwen.model
    inputs = qwen.prompt(*MIXED)
    width = inputs["input_ids"].shape[1]
    plain = greedy(model, inputs, NEW)
    with vrga_ext.enable(model, **LOOSE | {"gamma": gamma}) as handle:
        batch = greedy(model, inputs, NEW)
        regions = handle.regions
        grids = [[span.grid for span in region.images] for region in regions]
        assert grids == [[(2, 3), (2, 4), (2, 4)], [], [(3, 2), (4, 4), (1, 5)]]
        if gamma == 0.0:
            assert torch.equal(logits(batch), logits(plain))
            return
        torch.testing.assert_close(logits(batch)[:, 1], logits(plain)[:, 1], atol=1e-4, rtol=1e-4)
        for row, first in ((0, (0, 0)), (2, (1, 1))):
            alone = qwen.prompt(MIXED[row])
            for kind, start in zip(("image", "video"), first, strict=True):
                pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
                sizes = inputs[f"{kind}_grid_thw"].prod(1).tolist()
                skipped = sum(sizes[:start])
                alone[pixels] = inputs[pixels][skipped : skipped + len(alone[pixels])]
            _, expected = greedy_loop(model, alone, NEW)
            torch.testing.assert_close(logits(batch)[:, row], expected[:, 0], atol=1e-4, rtol=1e-4)
            padding = width - alone["input_ids"].shape[1]
            assert torch.equal(handle.regions[0].boosted + padding, regions[row].boosted)


def test_image_in_some_rows(family):
    """Padding on the left, an image in the middle row only."""
    model = family.model
    inputs = family.prompt([5, 6, 7], ROWS[1], [8, 9, 10, 11, 12])
    plain = greedy(model, inputs, NEW)
    with vrga_ext.enable(model, **LOOSE) as handle:
        ours = greedy(model, inputs, NEW)
        regions = handle.regions
        _, alone = greedy_loop(model, family.prompt(ROWS[1]), NEW)
    changed = (logits(ours) - logits(plain)).abs().amax(2)
    assert changed[:, [0, 2]].max() < 1e-5
    torch.testing.assert_close(logits(ours)[:, 1], alone[:, 0], atol=1e-4, rtol=1e-4)
    assert [bool(region.visual_heads) for region in regions] == [False, True, False]


def test_row_without_an_image_is_plain(family):
    rows = (ROWS[0], [5, 6, 7, 8, 9])
    inputs = family.prompt(*rows)
    plain = greedy(family.model, inputs, 6)
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        ours = greedy(family.model, inputs, 6)
    torch.testing.assert_close(logits(ours)[:, 1], logits(plain)[:, 1], atol=1e-5, rtol=1e-5)
    assert (logits(ours)[1:, 0] - logits(plain)[1:, 0]).abs().max() > 1e-2
    assert handle.regions[1].visual_heads == ()
    assert len(handle.regions[1].boosted) == 0


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


def test_four_dimensional_mask_over_right_padding():
    """What no row attends to is padding: the question ends before it."""
    family = build("llava")
    inputs = family.prompt(ROWS[0])
    prompt, added = inputs["input_ids"].shape[1], 3
    padded = torch.nn.functional.pad(inputs["input_ids"], (0, added))
    kept = torch.arange(prompt + added) < prompt
    causal = torch.ones(prompt + added, prompt + added, dtype=torch.bool).tril()
    mask = torch.where((causal & kept)[None, None], 0.0, torch.finfo(torch.float32).min)
    with vrga_ext.enable(family.model, **LOOSE) as handle, torch.no_grad():
        family.model(**inputs, use_cache=True)
        (wanted,) = handle.regions
        rest = {"input_ids": padded, "attention_mask": mask}
        family.model(**(inputs | rest), use_cache=True)
        (region,) = handle.regions
    assert region.question_end == wanted.question_end == prompt - 1
    assert region.visual_heads == wanted.visual_heads
    assert torch.equal(region.boosted, wanted.boosted)
