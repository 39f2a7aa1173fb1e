"""Every model family, with images, videos and both: what is enabled is what the formula says."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import vrga_ext
from tests.adapter.explicit import explicit_greedy, language_attention
from tests.adapter.families import (
    FAMILIES,
    LOOSE,
    Family,
    Video,
    build,
    greedy,
    greedy_or_skip,
    logits,
)

NEW = 4
CONFIG = vrga_ext.VRGAConfig(**LOOSE)
IMAGE, CLIP = (4, 4), Video(frames=3, rows=2, columns=2)
PROMPTS = {
    "image": ([5, 6, IMAGE, 7, 8, 9, 10], [11, IMAGE, 12, IMAGE, 13, 14]),
    "video": ([5, 6, CLIP, 7, 8, 9, 10], [CLIP, 12, 13]),
    "image and video": ([5, IMAGE, 6, CLIP, 7, 8, 9], [CLIP, 12, IMAGE, 13]),
}
CASES = [
    (name, kind)
    for name, registered in FAMILIES.items()
    for kind in PROMPTS
    if registered.media.issuperset(kind.split(" and ")) and (registered.mixes or "and" not in kind)
]


class Case(NamedTuple):
    """A prompt of a family, answered without VRGA and with it."""

    family: Family
    rows: tuple[list[Any], ...]
    inputs: dict[str, Tensor]
    plain: Any
    boosted: Any
    regions: list[vrga_ext.Region]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request) -> Case:
    name, kind = request.param
    family = build(name)
    inputs = family.prompt(*PROMPTS[kind])
    plain = greedy(family.model, inputs, NEW)
    with vrga_ext.enable(family.model, CONFIG, question_end=_last(inputs)) as handle:
        boosted = greedy(family.model, inputs, NEW)
    return Case(family, PROMPTS[kind], inputs, plain, boosted, handle.regions)


def _last(inputs: dict[str, Tensor]) -> int:
    return inputs["input_ids"].shape[1] - 1


def test_gamma_zero_is_bit_identical(case):
    with vrga_ext.enable(case.family.model, gamma=0.0, question_end=_last(case.inputs)) as handle:
        ours = greedy(case.family.model, case.inputs, NEW)
    assert torch.equal(logits(ours), logits(case.plain))
    assert all(region.visual_heads for region in handle.regions)  # analysed all the same
    assert handle.notices == ()  # no layer is missed


def test_disabled_again_is_bit_identical(case):
    assert torch.equal(logits(greedy(case.family.model, case.inputs, NEW)), logits(case.plain))


def test_equals_reweighting_stored_weights(case):
    tokens = case.boosted.sequences[:, -NEW:]
    explicit = explicit_greedy(case.family.model, case.inputs, tokens, case.regions, CONFIG)
    torch.testing.assert_close(logits(case.boosted), logits(explicit), atol=2e-5, rtol=1e-4)
    changed = (logits(case.boosted) - logits(case.plain))[1].abs().amax(1)
    assert (changed > 1e-3).all(), "the boost shows in every row"


def test_region_is_the_image_columns(case):
    columns = case.family.image_columns(case.inputs)
    for row, region in enumerate(case.regions):
        image = columns[row].nonzero().flatten()
        assert torch.equal(region.image_positions, image)
        assert set(region.focus.tolist()) <= set(region.boosted.tolist()) <= set(image.tolist())


def test_images_frames_and_grids(case):
    for row, region in zip(case.rows, case.regions, strict=True):
        assert [(span.length, span.grid) for span in region.images] == case.family.spans(row)


def test_statistics_equal_eager_attention(case):
    model, last = case.family.model, _last(case.inputs)
    with language_attention(model, "eager"), torch.no_grad():
        attentions = model(**case.inputs, output_attentions=True).attentions
    layers = [weights for weights in attentions if weights is not None]
    for row, region in enumerate(case.regions):
        if len(layers) > len(region.layers):  # the others have a window
            layers = [layers[layer] for layer in region.layers]
        assert len(layers) == len(region.layers)
        a = torch.stack([weights[row, :, last].double() for weights in layers])  # [L, H, K]
        image = a[..., region.image_positions]
        attended = int(case.inputs["attention_mask"][row].sum())
        torch.testing.assert_close(
            region.image_ratio, image.mean(-1) * attended, rtol=1e-5, atol=1e-6
        )
        inside = image / image.sum(-1, keepdim=True)
        entropy = -torch.special.xlogy(inside, inside).sum(-1)
        torch.testing.assert_close(region.image_entropy, entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_of_other_shapes(name):
    family = build(name)
    if family.fixed_image:
        pytest.skip(f"every image has {family.fixed_image} tokens")
    rows = ([5, (2, 6), 7, (6, 6), 8], [(6, 2), 9, (4, 8), 10])
    inputs = family.prompt(*rows)
    greedy_or_skip(family.model, inputs, 2)
    with vrga_ext.enable(family.model, CONFIG, question_end=_last(inputs)) as handle:
        greedy(family.model, inputs, 2)
    assert [[(span.length, span.grid) for span in region.images] for region in handle.regions] == [
        family.spans(row) for row in rows
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_eager_models(name):
    family = build(name, attn_implementation="eager")
    inputs = family.prompt(*PROMPTS["image"])
    plain = greedy(family.model, inputs, NEW)
    with vrga_ext.enable(family.model, gamma=0.0, question_end=_last(inputs)):
        zero = greedy(family.model, inputs, NEW)
    assert torch.equal(logits(zero), logits(plain))
    with vrga_ext.enable(family.model, CONFIG, question_end=_last(inputs)) as handle:
        boosted = greedy(family.model, inputs, NEW)
    tokens = boosted.sequences[:, -NEW:]
    explicit = explicit_greedy(family.model, inputs, tokens, handle.regions, CONFIG)
    torch.testing.assert_close(logits(boosted), logits(explicit), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_heads_are_counted_among_full_attention_layers(name):
    """The first layer has linear attention: the first heads are those of the second."""
    family = build(name)
    inputs = family.prompt(*PROMPTS["image"])
    everything = {"background_first_heads": 5, "background_max_ratio": 1e9}
    config = CONFIG.replace(**everything)
    with vrga_ext.enable(family.model, config, question_end=_last(inputs)) as handle:
        greedy(family.model, inputs, 2)
    for region in handle.regions:
        assert region.layers == (1, 2)
        assert region.image_ratio.shape == (2, 4)
        assert region.background_heads == ((1, 0), (1, 1), (1, 2), (1, 3), (2, 0))


@pytest.mark.parametrize("name", [name for name, known in FAMILIES.items() if not known.mixes])
def test_both_in_a_batch_is_refused_by_transformers_itself(name):
    family = build(name)
    with pytest.raises(ValueError, match=r"tokens do not match|provided at the same time"):
        greedy(family.model, family.prompt(*PROMPTS["image and video"]), 2)
