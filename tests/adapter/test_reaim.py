"""Re-aiming: T_q chosen anew while the answer is written."""

from __future__ import annotations

import pytest
import torch

import vrga_ext
from tests.adapter.families import CACHE, CORE, LOOSE, ROWS, build, greedy, logits
from vrga_ext import selection
from vrga_ext.adapter.caches import state_of

EVERY, NEW = 3, 8


@pytest.fixture(scope="module", params=CORE)
def family(request):
    return build(request.param)


def rows_of(model, cache, token, region):
    """Image rows {(layer, head): [n]} of one step under stored weights, before reweighting."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=token, **{CACHE: cache}, output_attentions=True)
    model.set_attn_implementation("sdpa")
    heads = (*region.visual_heads, *region.background_heads)
    return {
        (layer, head): output.attentions[layer][0, head, 0, region.image_positions]
        for layer, head in heads
    }


def test_aims_where_the_heads_look_at_that_step(family):
    """Without a boost the step's own weights are those of a plain model."""
    inputs = family.prompt(ROWS[0])
    width = inputs["input_ids"].shape[1]
    config = vrga_ext.VRGAConfig(**LOOSE | {"gamma": 0.0})
    with vrga_ext.enable(family.model, config, reaim_every=EVERY) as handle:
        written = greedy(family.model, inputs, EVERY + 2).sequences
        region = handle.regions[0]
    assert region.aimed_at == width + EVERY
    with vrga_ext.enable(family.model, config) as handle:
        greedy(family.model, inputs, 2)
        first = handle.regions[0]
    with torch.no_grad():
        cache = family.model(**inputs, use_cache=True)[CACHE]
        for token in written[0, width : width + EVERY]:
            family.model(input_ids=token[None, None], **{CACHE: cache})
    token = written[:, width + EVERY :][:, :1]
    rows = rows_of(family.model, cache, token, region)

    def maps(heads):
        found = [rows[head] for head in heads]
        return torch.stack(found) if found else torch.empty(0, len(region.image_positions))

    refined = selection.refined_map(maps(region.visual_heads), maps(region.background_heads))
    focus, _ = selection.focus_tokens(refined, list(region.images), config)
    torch.testing.assert_close(region.refined_map, refined, atol=1e-6, rtol=1e-4)
    assert torch.equal(region.focus, region.image_positions[focus])
    assert first.aimed_at is None
    assert region.visual_heads == first.visual_heads
    assert not torch.equal(region.refined_map, first.refined_map)


@pytest.mark.parametrize("gate", ["static", "dynamic"])
def test_later_steps_use_the_new_tokens(family, gate):
    """The same tokens, aimed by hand at the same step, give the same logits."""
    inputs = family.prompt(ROWS[0])
    width = inputs["input_ids"].shape[1]
    with vrga_ext.enable(family.model, **LOOSE, gate=gate, reaim_every=EVERY) as handle:
        ours = greedy(family.model, inputs, 2 * EVERY)
        regions = handle.regions
    tokens = ours.sequences[:, width:]
    assert all(region.aimed_at == width + EVERY for region in regions)
    steps = []
    with vrga_ext.enable(family.model, **LOOSE, gate=gate) as handle, torch.no_grad():
        output = family.model(**inputs, use_cache=True)
        asked = handle.regions
        for step in range(2 * EVERY):
            steps.append(output.logits[:, -1])
            if step == EVERY + 1:  # the token at column width + EVERY has been read
                state_of(output[CACHE]).aim(
                    regions, regions[0].layers, regions[0].image_ratio.shape[1]
                )
            token = tokens[:, step : step + 1]
            output = family.model(input_ids=token, **{CACHE: output[CACHE]})
    torch.testing.assert_close(logits(ours), torch.stack(steps), atol=1e-5, rtol=1e-5)
    moved = [not torch.equal(a.boosted, b.boosted) for a, b in zip(asked, regions, strict=True)]
    assert any(moved)


@pytest.mark.parametrize("how", [{"reaim_every": 2}, {"reaim_entropy": 0.9}])
def test_batch_equals_single_rows(family, how):
    rows = ROWS[:2]
    inputs = family.prompt(*rows)
    pixels = inputs["pixel_values"].chunk(len(rows))
    with vrga_ext.enable(family.model, **LOOSE, **how) as handle:
        together = greedy(family.model, inputs, NEW)
        regions = handle.regions
        for row, tokens in enumerate(rows):
            single = family.prompt(tokens) | {"pixel_values": pixels[row]}
            alone = greedy(family.model, single, NEW)
            torch.testing.assert_close(
                logits(alone)[:, 0], logits(together)[:, row], atol=1e-4, rtol=1e-4
            )
            padding = inputs["input_ids"].shape[1] - single["input_ids"].shape[1]
            assert torch.equal(handle.regions[0].boosted + padding, regions[row].boosted)
            assert handle.regions[0].aimed_at is not None


def test_entropy_decides(family):
    inputs = family.prompt(*ROWS)
    with vrga_ext.enable(family.model, **LOOSE):
        plain = greedy(family.model, inputs, NEW)
    aimed = {}
    for factor in (1e-3, 1e3):
        with vrga_ext.enable(family.model, **LOOSE, reaim_entropy=factor) as handle:
            ours = greedy(family.model, inputs, NEW)
            aimed[factor] = [region.aimed_at for region in handle.regions]
        if factor > 1:
            assert torch.equal(logits(ours), logits(plain))
    assert None not in aimed[1e-3]
    assert aimed[1e3] == [None] * len(ROWS)


def test_beams_and_a_second_prompt(family):
    inputs = family.prompt(*ROWS[:2])
    with vrga_ext.enable(family.model, **LOOSE, reaim_every=2) as handle:
        first = greedy(family.model, inputs, NEW, num_beams=3)
        assert [r.aimed_at is not None for r in handle.regions] == [True, True]
        greedy(family.model, inputs, 2)
        assert [r.aimed_at for r in handle.regions] == [None, None]
        again = greedy(family.model, inputs, NEW, num_beams=3)
    assert torch.equal(first.sequences, again.sequences)


def test_off_by_default(family):
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        assert handle.recorders == []
