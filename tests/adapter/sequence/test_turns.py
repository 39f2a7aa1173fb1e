"""Whose state a cache holds: loops, further turns, prefixes, cropped caches, other models."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.families import CACHE, IMAGE, LOOSE, ROWS, build, greedy, logits

NEW = 6


def test_manual_loop_equals_generate(family):
    inputs = family.prompt(*ROWS[:1])
    with vrga_ext.enable(family.model, **LOOSE):
        generated = greedy(family.model, inputs, NEW)
        steps, cache, step_inputs = [], DynamicCache(config=family.model.config), inputs
        with torch.no_grad():
            for _ in range(NEW):
                output = family.model(**step_inputs, **{CACHE: cache}, use_cache=True)
                steps.append(output.logits[:, -1])
                token = steps[-1].argmax(-1, keepdim=True)
                step_inputs = {"input_ids": token}
    torch.testing.assert_close(torch.stack(steps), logits(generated), atol=1e-5, rtol=1e-5)


def test_cache_made_by_the_model_is_used(family):
    inputs = family.prompt(*ROWS[:1])
    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        first = family.model(**inputs, use_cache=True)
        token = first.logits[:, -1].argmax(-1, keepdim=True)
        second = family.model(input_ids=token, **{CACHE: first[CACHE]}, use_cache=True)
        generated = greedy(family.model, inputs, 2)
    torch.testing.assert_close(second.logits[:, -1], logits(generated)[1], atol=1e-5, rtol=1e-5)


def test_second_turn_on_a_kept_cache(family):
    """The second question aims anew at the first turn's image."""
    inputs = family.prompt(ROWS[0])
    model = family.model
    with vrga_ext.enable(model, **LOOSE) as handle:
        cache = DynamicCache(config=model.config)
        turn = greedy(model, inputs, NEW, **{CACHE: cache}, suppress_tokens=[IMAGE])
        first = handle.regions[0]
        ids = torch.cat([turn.sequences, torch.tensor([[20, 21, 22]])], 1)
        follow = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if family.name != "llava":
            follow["mm_token_type_ids"] = (ids == IMAGE).int()
        greedy(model, follow, NEW, **{CACHE: cache})
        second = handle.regions[0]
    assert second.question_end == ids.shape[1] - 1
    assert torch.equal(second.image_positions, first.image_positions)
    assert second.grid == first.grid == (4, 4)
    assert not torch.equal(second.efr, first.efr)


def test_second_turn_with_new_tokens_only(family):
    """The first turn's image is remembered, and the new turn ends where the mask ends."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE) as handle:
        results = []
        for only_new in (False, True):
            cache = DynamicCache(config=model.config)
            turn = greedy(model, inputs, NEW, **{CACHE: cache}, suppress_tokens=[IMAGE])
            full = torch.cat([turn.sequences, torch.tensor([[20, 21, 22]])], 1)
            follow = {"input_ids": full[:, cache.get_seq_length() :] if only_new else full}
            follow["attention_mask"] = torch.ones_like(full)
            if family.name != "llava":
                follow["mm_token_type_ids"] = (follow["input_ids"] == IMAGE).int()
            results.append((logits(greedy(model, follow, 3, **{CACHE: cache})), handle.regions))
    (all_ids, first), (new_ids, second) = results
    torch.testing.assert_close(new_ids, all_ids)
    assert torch.equal(first[0].image_positions, second[0].image_positions)
    assert torch.equal(first[0].boosted, second[0].boosted)
    assert second[0].question_end == full.shape[1] - 1


def test_prefix_cache_by_deepcopy(family):
    """One cache of the image, continued twice."""
    model = family.model
    whole = family.prompt(ROWS[0])
    cut = whole["input_ids"].shape[1] - 3
    prefix = {name: tensor[:, :cut] for name, tensor in whole.items() if tensor.dim() == 2}
    prefix |= {k: v for k, v in whole.items() if k.startswith(("pixel", "image_grid"))}
    rest = {k: v for k, v in whole.items() if k not in ("pixel_values", "image_grid_thw")}
    with vrga_ext.enable(model, **LOOSE) as handle:
        expected = greedy(model, whole, NEW)
        region = handle.regions[0]
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(**prefix, **{CACHE: cache}, use_cache=True)
        for _ in range(2):
            ours = greedy(model, rest, NEW, **{CACHE: copy.deepcopy(cache)})
            torch.testing.assert_close(logits(ours), logits(expected), atol=1e-5, rtol=1e-5)
            assert torch.equal(handle.regions[0].boosted, region.boosted)


def test_cropped_cache_is_read_anew(family):
    """Without the prompt's end in the cache there is no region to boost any more."""
    model = family.model
    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(**family.prompt(ROWS[0]), **{CACHE: cache})
        cache.crop(-3)
        length = cache.get_seq_length()
        model(input_ids=torch.tensor([[9]]), **{CACHE: cache})
    assert handle.regions[0].question_end == length


def test_cache_of_another_model_is_read_anew(family):
    """A state of another handle does not boost: regions are found by who uses the cache."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with torch.no_grad():
        with vrga_ext.enable(model, **LOOSE):
            cache = DynamicCache(config=model.config)
            token = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        plain = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        with vrga_ext.enable(model, **LOOSE):
            again = model(input_ids=token, **{CACHE: cache}).logits
    assert torch.equal(again, plain)


QWEN = ("qwen2_vl", "qwen2_5_vl")


@pytest.fixture(scope="module", params=QWEN)
def qwen(request):
    return build(request.param)


@pytest.mark.parametrize("loop", ["generate", "manual"])
def test_new_image_in_a_second_turn(qwen, loop):
    """Its positions count tokens there, so that its grid is the processor's."""
    model = qwen.model
    follow = qwen.prompt([20, (2, 3), 21, 22], seed=1)
    with vrga_ext.enable(model, **LOOSE) as handle:
        cache = DynamicCache(config=model.config)
        greedy(model, qwen.prompt(ROWS[0]), 3, **{CACHE: cache}, suppress_tokens=[IMAGE])
        past = cache.get_seq_length()
        follow["attention_mask"] = torch.ones(1, past + follow["input_ids"].shape[1]).long()
        if loop == "generate":
            greedy(model, follow, 2, **{CACHE: cache})
        else:
            del follow["attention_mask"]
            with torch.no_grad():
                model(**follow, **{CACHE: cache})
        region = handle.regions[0]
    assert [span.grid for span in region.images] == [(4, 4), (2, 3)]
    assert region.image_positions[16:].tolist() == list(range(past + 2, past + 8))
