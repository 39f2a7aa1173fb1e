"""Whose state it is: turns, kept, copied, repeated and cropped caches, pauses, threads."""

from __future__ import annotations

import copy
import gc
import importlib
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

import vrga_ext
from tests.adapter.families import CACHE, CORE, IMAGE, LOOSE, ROWS, build, greedy, logits

NEW = 6


@pytest.fixture(scope="module", params=CORE)
def family(request):
    return build(request.param)


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


def test_repeated_cache(family):
    """A cache whose rows were repeated is continued in every row."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        token = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        single = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        cache.batch_repeat_interleave(3)
        if family.name != "llava":
            model.model.rope_deltas = model.model.rope_deltas.repeat_interleave(3, 0)
        repeated = model(input_ids=token.expand(3, 1), **{CACHE: cache}).logits
    torch.testing.assert_close(repeated, single.expand_as(repeated), atol=1e-5, rtol=1e-5)


def first_step(family, cache) -> tuple[Tensor, Tensor]:
    """Logits of a step after a prompt of two rows, on a copy of the cache, and its tokens."""
    inputs = family.prompt(ROWS[0], [11, (4, 4), 12, 13, 14, 15, 16])
    token = family.model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
    return family.model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits, token


def moved_step(family, cache, token, rows) -> Tensor:
    """Logits of the same step on a cache of these rows."""
    deltas = getattr(family.model.model, "rope_deltas", None)
    if deltas is not None:
        family.model.model.rope_deltas = deltas[rows]
    return family.model(input_ids=token[rows], **{CACHE: cache}).logits


@pytest.mark.parametrize(
    ("rows", "moves"),
    [
        ([1, 0], [("reorder_cache", torch.tensor([1, 0]))]),
        ([0, 1, 0, 1], [("reorder_cache", torch.tensor([0, 1, 0, 1]))]),
        ([1], [("batch_select_indices", torch.tensor([False, True]))]),
        ([1, 1], [("batch_select_indices", torch.tensor([1])), ("batch_repeat_interleave", 2)]),
    ],
    ids=["exchanged", "tiled", "dropped", "dropped and repeated"],
)
def test_boosts_follow_the_rows_of_a_cache(family, rows, moves):
    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=family.model.config)
        expected, token = first_step(family, cache)
        copied = pickle.loads(pickle.dumps(cache))
        for name, argument in moves:
            with torch.device("meta"):  # whatever the default device is
                getattr(copied, name)(argument)
        ours = moved_step(family, copied, token, rows)
    torch.testing.assert_close(ours, expected[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen3_5"])
def test_boosts_follow_the_rows_of_other_caches(name):
    """A static cache, and one whose layers are of several kinds."""
    family, rows = build(name), torch.tensor([1, 0])
    config = family.model.config.get_text_config()
    static = StaticCache(config=config, max_cache_len=40)
    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        cache = static if name == "llava" else DynamicCache(config=config)
        expected, token = first_step(family, cache)
        cache.reorder_cache(beam_idx=rows)
        ours = moved_step(family, cache, token, rows)
    torch.testing.assert_close(ours, expected[rows], atol=1e-5, rtol=1e-5)


def test_compiled_code_may_move_rows(family):
    rows = torch.tensor([1, 0])

    @torch.compile(backend="eager")
    def exchange(cache):
        cache.batch_select_indices(rows)
        return cache.layers[0].keys.sum()

    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=family.model.config)
        expected, token = first_step(family, cache)
        exchange(cache)
        ours = moved_step(family, cache, token, rows)
    torch.testing.assert_close(ours, expected[rows], atol=1e-5, rtol=1e-5)


def test_rows_are_followed_once_whoever_imports_the_package_again(monkeypatch):
    methods = [getattr(Cache, name) for name in ("reorder_cache", "batch_select_indices")]
    monkeypatch.delitem(sys.modules, "vrga_ext.integrations.transformers.sequence.kv_cache")
    importlib.import_module("vrga_ext.integrations.transformers.sequence.kv_cache")
    assert methods == [getattr(Cache, m.__name__) for m in methods]


def test_cache_is_freed_with_its_last_reference(family):
    """At once, not when the garbage collector comes by."""
    with vrga_ext.enable(family.model, **LOOSE), torch.no_grad():
        cache = DynamicCache(config=family.model.config)
        family.model(**family.prompt(ROWS[0]), **{CACHE: cache})
        cache.reorder_cache(torch.tensor([0]))
        gone = weakref.ref(cache)
        gc.disable()
        try:
            del cache
            assert gone() is None
        finally:
            gc.enable()


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


def test_call_inside_generate_is_a_prompt_of_its_own(family):
    """A logits processor may run the model on another cache, as contrastive decoding does."""
    model = family.model
    inputs, other = family.prompt(ROWS[0]), family.prompt(ROWS[1], seed=1)
    nested: list[torch.Tensor] = []

    def run_other() -> list[torch.Tensor]:
        cache = DynamicCache(config=model.config)
        first = model(**other, **{CACHE: cache}).logits[:, -1]
        token = first.argmax(-1, keepdim=True)
        return [first, model(input_ids=token, **{CACHE: cache}).logits[:, -1]]

    def contrast(ids, scores):
        deltas = getattr(model.model, "rope_deltas", None)
        nested.extend(run_other())
        if deltas is not None:
            model.model.rope_deltas = deltas
        return scores

    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        alone = greedy(model, inputs, 3)
        region = handle.regions[0]
        expected = run_other()
        ours = greedy(model, inputs, 3, logits_processor=[contrast])
    assert torch.equal(logits(ours), logits(alone))
    assert torch.equal(handle.regions[0].boosted, region.boosted)
    torch.testing.assert_close(nested[-2:], expected)


def test_pause_between_turns(family):
    """A prompt read in a pause is not boosted afterwards; its image is not forgotten."""
    model = family.model
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        cache = DynamicCache(config=model.config)
        with handle.pause():
            token = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        assert handle.regions == []
        step = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        with handle.pause():
            plain = model(input_ids=token, **{CACHE: copy.deepcopy(cache)}).logits
        assert torch.equal(step, plain)
        model(input_ids=torch.tensor([[7, 8, 9]]), **{CACHE: cache})
    image = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    assert torch.equal(handle.regions[0].image_positions, image)
    assert handle.regions[0].grid == (4, 4)


def test_pause_that_ends_within_a_prompt(family):
    inputs = family.prompt(ROWS[0])
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        pause = handle.pause()

        def resume(module, args):
            pause.__exit__(None, None, None)

        pause.__enter__()
        hook = family.model.get_decoder().layers[0].register_forward_pre_hook(resume)
        paused = greedy(family.model, inputs, 1)
        hook.remove()
        after = greedy(family.model, inputs, 2)
    assert torch.equal(logits(paused)[0], logits(after)[0])
    assert handle.regions[0].visual_heads


def test_threads_do_not_mix():
    family = build("llava")  # the Qwen models keep rotary offsets on the module: not for threads
    rows = [family.prompt(row, seed=seed) for seed, row in enumerate(ROWS[:2])]
    with vrga_ext.enable(family.model, **LOOSE):
        expected = [logits(greedy(family.model, inputs, NEW)) for inputs in rows]
        with ThreadPoolExecutor(2) as pool:
            runs = list(
                pool.map(lambda i: logits(greedy(family.model, rows[i % 2], NEW)), range(8))
            )
    for index, run in enumerate(runs):
        torch.testing.assert_close(run, expected[index % 2])
