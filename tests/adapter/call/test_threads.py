"""Threads: several answers at once, streamers, pauses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import torch
from transformers import TextIteratorStreamer, TextStreamer

import vrga_ext
from tests.adapter.families import LOOSE, ROWS, build, greedy, logits
from tests.adapter.loops import greedy_loop

NEW = 6


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


def test_loops_of_several_threads():
    family = build("llava")  # the Qwen models keep rotary offsets on the module: not for threads
    prompts = [family.prompt(row, seed=seed) for seed, row in enumerate(ROWS)]
    with vrga_ext.enable(family.model, **LOOSE):
        expected = [greedy_loop(family.model, inputs, 4)[1] for inputs in prompts]
        with ThreadPoolExecutor(3) as pool:
            runs = list(
                pool.map(lambda i: greedy_loop(family.model, prompts[i % 3], 4)[1], range(9))
            )
    for index, run in enumerate(runs):
        torch.testing.assert_close(run, expected[index % 3], atol=1e-5, rtol=1e-5)


class Numbers:
    """A tokenizer for streamers: every token is written as its id."""

    def decode(self, ids, **kwargs):
        return "".join(f"{int(token)} " for token in ids)


def test_streamers(family, capsys):
    inputs = family.prompt(ROWS[0])
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with vrga_ext.enable(family.model, **LOOSE):
        tokens, _ = greedy_loop(family.model, inputs, 5)
        expected = "".join(f"{token} " for token in tokens[0].tolist())
        family.model.generate(
            **inputs, **options, streamer=TextStreamer(Numbers(), skip_prompt=True)
        )
        assert capsys.readouterr().out.strip() == expected.strip()
        streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=60)
        thread = Thread(
            target=family.model.generate, kwargs=inputs | options | {"streamer": streamer}
        )
        thread.start()
        assert "".join(streamer) == expected
        thread.join()


def test_pause_holds_in_threads_that_are_started_in_it(family):
    inputs = family.prompt(ROWS[0])
    plain = greedy(family.model, inputs, 3)
    found = []
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        thread = Thread(target=lambda: found.append(greedy(family.model, inputs, 3)))
        with handle.pause():
            assert handle.paused
            thread.start()
            thread.join()
        assert not handle.paused
    assert torch.equal(logits(found[0]), logits(plain))
