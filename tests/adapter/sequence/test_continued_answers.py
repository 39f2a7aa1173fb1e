"""An answer that another call of ``generate``, or of the model, goes on with from its own cache."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import vrga_ext
from tests.adapter.families import CACHE, IMAGE, LOOSE, ROWS, Family, greedy, logits
from tests.adapter.loops import greedy_loop

NEW = 6


UNGUIDED = "not guided: nothing tells that they were generated"


def follow_up(family: Family, ids: Tensor) -> dict[str, Tensor]:
    """Inputs of a later turn: token ids [B, S] alone, since the cache has the picture."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family.name != "llava":
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs


def in_pieces(family: Family, pieces: tuple[int, ...], **kwargs) -> tuple[Tensor, Tensor]:
    """Tokens and logits [steps, B, vocabulary] of several calls of ``generate`` on one cache."""
    model, inputs, found = family.model, family.prompt(*kwargs.pop("rows", ROWS[:1])), []
    cache = DynamicCache(config=model.config)
    for new in pieces:
        output = greedy(model, inputs, new, **{CACHE: cache}, suppress_tokens=[IMAGE], **kwargs)
        found.append(logits(output))
        inputs = follow_up(family, output.sequences)
        cache = output[CACHE]
    return output.sequences, torch.cat(found)


@pytest.mark.parametrize("pieces", [(1,) * NEW, (1, 5), (3, 2, 1), (5, 1)])
def test_pieces_equal_one_call(family, pieces):
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        tokens, expected = in_pieces(family, (NEW,))
        boosted = handle.regions[0].boosted
        noticed = handle.notices
        again, found = in_pieces(family, pieces)
        assert torch.equal(handle.regions[0].boosted, boosted)
        assert handle.notices == noticed
    _, plain = in_pieces(family, (NEW,))
    assert torch.equal(again, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (plain[-1] - expected[-1]).abs().max() > 1e-3  # the boost is to be seen


def test_several_rows(family):
    rows = (ROWS[0], [11, (4, 4), 12, 13, 14, 15, 16])
    with vrga_ext.enable(family.model, **LOOSE):
        tokens, expected = in_pieces(family, (NEW,), rows=rows)
        again, found = in_pieces(family, (2, 1, 3), rows=rows)
    assert torch.equal(again, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def answer(family):
    """A cache that holds an answer but for its last token, all tokens, and its handle."""
    model = family.model
    cache = DynamicCache(config=model.config)
    with vrga_ext.enable(model, **LOOSE) as handle:
        output = greedy(model, family.prompt(ROWS[0]), 3, **{CACHE: cache}, suppress_tokens=[IMAGE])
        yield cache, output.sequences, handle


def last_logits(family: Family, cache, inputs: dict[str, Tensor]) -> Tensor:
    return logits(greedy(family.model, inputs, 2, **{CACHE: copy.deepcopy(cache)}))


def test_new_tokens_only(family, answer):
    """The uncached token alone, with a mask over the cache."""
    cache, ids, _ = answer
    expected = last_logits(family, cache, follow_up(family, ids))
    short = {"input_ids": ids[:, -1:], "attention_mask": torch.ones_like(ids)}
    if family.name != "llava":
        short["mm_token_type_ids"] = torch.zeros_like(short["input_ids"], dtype=torch.int)
    torch.testing.assert_close(last_logits(family, cache, short), expected)


def test_cropped_cache_goes_on(family, answer):
    """Tokens of the answer that are read again are guided again, in one call of several."""
    cache, ids, handle = answer
    expected = last_logits(family, cache, follow_up(family, ids))
    noticed = handle.notices
    cropped = copy.deepcopy(cache)
    cropped.crop(-2)
    again = last_logits(family, cropped, follow_up(family, ids))
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)
    by_hand = copy.deepcopy(cache)
    by_hand.crop(-2)
    with torch.no_grad():
        step = family.model(input_ids=ids[:, -3:], **{CACHE: by_hand}, use_cache=True)
    torch.testing.assert_close(step.logits[:, -1], expected[0], atol=1e-5, rtol=1e-5)
    assert handle.notices == noticed


def test_copied_and_pickled_caches_go_on(family, answer):
    cache, ids, handle = answer
    expected = last_logits(family, cache, follow_up(family, ids))
    loaded = pickle.loads(pickle.dumps(cache))
    torch.testing.assert_close(last_logits(family, loaded, follow_up(family, ids)), expected)
    assert not any(UNGUIDED in notice for notice in handle.notices)


def test_repeated_rows_go_on(family, answer):
    """The cache's rows are repeated, and so are the tokens."""
    cache, ids, _ = answer
    model = family.model
    expected = last_logits(family, cache, follow_up(family, ids))
    cache.batch_repeat_interleave(2)
    deltas = getattr(model.model, "rope_deltas", None)
    if deltas is not None:
        model.model.rope_deltas = deltas.repeat_interleave(2, 0)
    found = last_logits(family, cache, follow_up(family, ids.repeat_interleave(2, 0)))
    torch.testing.assert_close(found, expected.expand_as(found), atol=1e-5, rtol=1e-5)


def other_token(ids: Tensor) -> Tensor:
    """The same tokens with another last one."""
    return torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % 10 + 20], 1)


def test_token_that_was_not_generated_is_said(family, answer):
    """A sampler of one's own: nothing tells its token from the first one of a question."""
    cache, ids, handle = answer
    with pytest.warns(vrga_ext.VRGAWarning, match=UNGUIDED):
        last_logits(family, cache, follow_up(family, other_token(ids)))
    assert handle.regions[0].question_end == ids.shape[1] - 1
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error", vrga_ext.VRGAWarning)
        last_logits(family, cache, follow_up(family, other_token(ids)))


def test_answer_that_began_without_vrga_is_said(family):
    model, cache = family.model, DynamicCache(config=family.model.config)
    output = greedy(model, family.prompt(ROWS[0]), 3, **{CACHE: cache}, suppress_tokens=[IMAGE])
    with vrga_ext.enable(model, **LOOSE), pytest.warns(vrga_ext.VRGAWarning, match=UNGUIDED):
        greedy(model, follow_up(family, output.sequences), 1, **{CACHE: cache})


def test_every_returned_sequence_goes_on(family):
    """Sampled answers of one prompt, in rows of one cache."""
    model, inputs = family.model, family.prompt(ROWS[0])
    options = {"num_return_sequences": 2, "do_sample": True, "suppress_tokens": [IMAGE]}
    with vrga_ext.enable(model, **LOOSE) as handle:
        cache = DynamicCache(config=model.config)
        torch.manual_seed(0)
        first = greedy(model, inputs, 2, **{CACHE: cache}, **options)
        noticed = handle.notices
        again = greedy(model, follow_up(family, first.sequences), 3, **{CACHE: cache})
        assert handle.notices == noticed
        whole = copy.deepcopy(inputs)
        for row in range(2):
            alone = DynamicCache(config=model.config)
            forced = again.sequences[row, inputs["input_ids"].shape[1] :]
            _, expected = greedy_loop(model, whole, 5, cache=alone, forced=forced)
            torch.testing.assert_close(logits(again)[:, row], expected[2:, 0], atol=1e-4, rtol=1e-4)


def test_static_cache_goes_on(family):
    model, inputs = family.model, family.prompt(ROWS[0])
    text, columns = model.config.get_text_config(), inputs["input_ids"].shape[1] + NEW
    with vrga_ext.enable(model, **LOOSE) as handle:
        _, expected = in_pieces(family, (NEW,))
        cache = StaticCache(config=text, max_cache_len=columns)
        options = {CACHE: cache, "suppress_tokens": [IMAGE]}
        first = greedy(model, inputs, 2, **options)
        rest = greedy(model, follow_up(family, first.sequences), NEW - 2, **options)
        assert not any(UNGUIDED in notice for notice in handle.notices)
    found = torch.cat([logits(first), logits(rest)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_answer_of_a_manual_loop_is_said(family):
    """The loop's tokens are not known to be an answer."""
    model, inputs = family.model, family.prompt(ROWS[0])
    cache = DynamicCache(config=model.config)
    with vrga_ext.enable(model, **LOOSE):
        tokens, _ = greedy_loop(model, inputs, 3, cache=cache)
        ids = torch.cat([inputs["input_ids"], tokens], 1)
        with pytest.warns(vrga_ext.VRGAWarning, match=UNGUIDED):
            greedy(model, follow_up(family, ids), 1, **{CACHE: cache})


def test_changed_answer_is_said(family, answer):
    """A token in the cache is not the one that was generated: the caller has changed it."""
    cache, ids, _ = answer
    with torch.no_grad():
        step = {"input_ids": other_token(ids)[:, -1:], CACHE: cache}
        token = family.model(**step, use_cache=True).logits[:, -1:].argmax(-1)
    inputs = follow_up(family, torch.cat([other_token(ids), token], 1))
    with pytest.warns(vrga_ext.VRGAWarning, match=UNGUIDED):
        greedy(family.model, inputs, 1, **{CACHE: cache})


def test_question_of_a_new_turn_is_a_prompt(family, answer):
    cache, ids, handle = answer
    ids = torch.cat([ids, torch.tensor([[20, 21, 22]])], 1)
    before = handle.regions[0]
    greedy(family.model, follow_up(family, ids), 2, **{CACHE: cache})
    assert handle.regions[0].question_end == ids.shape[1] - 1
    assert not torch.equal(handle.regions[0].efr, before.efr)
    handle.question_end = ids.shape[1] + 4
    longer = torch.cat([ids, torch.tensor([[30, 31, 32, 33, 34, 35]])], 1)
    greedy(family.model, follow_up(family, longer), 2, **{CACHE: cache})
    assert handle.regions[0].question_end == ids.shape[1] + 4


def test_prefix_without_an_answer_is_no_answer(family):
    """A cached prefix that a question follows: nothing has been generated from it."""
    model, whole = family.model, family.prompt(ROWS[0])
    cut = whole["input_ids"].shape[1] - 3
    prefix = {name: tensor[:, :cut] for name, tensor in whole.items() if tensor.dim() == 2}
    prefix |= {k: v for k, v in whole.items() if k.startswith(("pixel", "image_grid"))}
    cache = DynamicCache(config=model.config)
    with vrga_ext.enable(model, **LOOSE) as handle, torch.no_grad():
        model(**prefix, **{CACHE: cache}, use_cache=True)
        greedy(model, follow_up(family, whole["input_ids"]), 2, **{CACHE: cache})
        assert not any(UNGUIDED in notice for notice in handle.notices)
        assert handle.regions[0].question_end == cut + 2


def test_pause_leaves_the_rest_plain(family, answer):
    cache, ids, handle = answer
    expected = last_logits(family, cache, follow_up(family, ids))
    with handle.pause():
        plain = last_logits(family, cache, follow_up(family, ids))
    assert (plain - expected).abs().max() > 1e-3
    torch.testing.assert_close(last_logits(family, cache, follow_up(family, ids)), expected)


def test_capture_goes_on(family):
    """One prompt, one capture, whatever number of calls has written its answer."""
    with vrga_ext.enable(family.model, **LOOSE):
        with vrga_ext.capture(family.model, rows=True) as one:
            in_pieces(family, (NEW,))
        with vrga_ext.capture(family.model, rows=True) as many:
            in_pieces(family, (2, 1, 3))
    assert len(many.captures) == 1
    for name in ("positions", "token_ids", "attended", "gate"):
        assert torch.equal(getattr(many.last, name), getattr(one.last, name)), name
    torch.testing.assert_close(many.last.image_ratio, one.last.image_ratio)
    torch.testing.assert_close(many.last.rows, one.last.rows)


def test_interrupted_call_is_over(family, answer):
    """After Ctrl-C in the middle of a call, the next several tokens are a prompt again."""
    cache, ids, handle = answer
    cropped = copy.deepcopy(cache)
    cropped.crop(-2)

    def interrupt(module, args, kwargs):
        raise KeyboardInterrupt

    hook = family.model.lm_head.register_forward_pre_hook(interrupt, with_kwargs=True)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        family.model(input_ids=ids[:, -3:], **{CACHE: cropped}, use_cache=True)
    hook.remove()
    with torch.no_grad():
        family.model(input_ids=torch.tensor([[20, 21]]), **{CACHE: cropped}, use_cache=True)
    assert handle.regions[0].question_end == ids.shape[1] + 1
