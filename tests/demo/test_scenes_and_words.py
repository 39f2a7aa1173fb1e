"""Pictures and words of the demo: deterministic, and as the processor and the model read them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tools.demo_model import batches
from vrga_ext.demo import answers, language, scenes
from vrga_ext.demo.build import load_processor, normalise, token
from vrga_ext.demo.pictures import DemoError, check_question


@pytest.fixture(scope="module")
def processor():
    return load_processor(answers.MODEL_PATH)


def test_same_seed_same_questions():
    first, again = answers.held_out(3, 5), answers.held_out(3, 5)
    for one, other in zip(first, again, strict=True):
        assert one.scene == other.scene
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert answers.held_out(1, 6)[0].scene != first[0].scene


def test_scene_has_the_target_its_look_alike_and_distinct_kinds():
    for sample in answers.held_out(50, 0):
        kinds = [placed.kind for placed in sample.scene.objects]
        assert len(set(kinds)) == len(kinds) == answers.OBJECTS
        assert sample.target.twin in kinds
        assert sample.scene.find(sample.target.twin).color != sample.color
        assert len({placed.cell for placed in sample.scene.objects}) == len(kinds)


def test_target_color_cannot_be_guessed_from_the_colors_in_the_picture():
    samples = answers.held_out(400, 1)
    common = 0
    for sample in samples:
        colors = [placed.color for placed in sample.scene.objects]
        common += sample.color == max(scenes.COLORS, key=colors.count)
    assert common / len(samples) < 0.125 + 4 * (0.125 * 0.875 / len(samples)) ** 0.5


def test_every_kind_and_colour_is_drawn():
    rng = np.random.default_rng(0)
    empty = scenes.draw_cell(rng, None, None).astype(int)
    for kind in scenes.KINDS:
        for color, wanted in scenes.COLORS.items():
            cell = scenes.draw_cell(rng, kind, color).astype(int)
            changed = np.abs(cell - np.array(scenes.BACKGROUND)).sum(-1) > 120
            assert 0.08 < changed.mean() < 0.8
            assert np.abs(np.median(cell[changed], axis=0) - np.array(wanted)).max() < 60
    assert np.abs(empty - np.array(scenes.BACKGROUND)).sum(-1).max() < 120


def test_question_ends_with_the_word_that_names_the_target(processor):
    sample = answers.held_out(1, 0)[0]
    ids = answers.prepare(processor, [sample], steps=1)["input_ids"][0].tolist()
    tail = [token("<|im_end|>"), token("<|im_start|>"), token("assistant")]
    assert ids[-3:] == tail
    assert ids[-4] == token(sample.target.shape)
    assert token("<|unknown|>") not in ids


def test_training_text_is_what_the_processor_writes(processor):
    sample = answers.held_out(1, 0)[0]
    ids = answers.prepare(processor, [sample], steps=1)["input_ids"][0].tolist()
    words = [*batches.PREFIX, *language.question_words("stepwise", sample.target)]
    assert ids[: len(words)] == [token(word) for word in words]


def test_training_patches_are_what_the_processor_makes(processor):
    sample = answers.held_out(1, 0)[0]
    given = answers.prepare(processor, [sample], steps=0)["pixel_values"]
    pixels = torch.from_numpy(np.array(sample.image))
    cells = pixels.unflatten(0, (scenes.GRID, -1)).unflatten(2, (scenes.GRID, -1))
    made = batches.to_patches(normalise(cells.transpose(1, 2))).flatten(0, 2)
    torch.testing.assert_close(given, made, atol=1e-5, rtol=0)


def test_decoded_text_reads_as_words(processor):
    ids = [token(word) for word in ("so", "hollow", "star", "green", "<|im_end|>")]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "so hollow star green"


def test_forced_steps_hold_the_length_and_leave_the_rest():
    forced = answers.ForcedSteps(steps=1, prompt_length=1)
    scores = torch.zeros(1, len(language.VOCABULARY))

    def allowed(*words: str) -> set[str]:
        ids = torch.tensor([[0, *(token(word) for word in words)]])
        left = forced(ids, scores.clone())[0]
        return {word for word in language.VOCABULARY if left[token(word)] == 0}

    everything = set(language.VOCABULARY)
    assert allowed() == everything - {"so", "<|im_end|>"}
    assert allowed("solid") == everything
    assert allowed("solid", ";") == {"so"}


def test_question_words_are_checked():
    assert check_question("what color is the hollow star?").startswith("stepwise: ")
    assert check_question("Directly: what color is the Star") == "Directly: what color is the Star"
    with pytest.raises(DemoError, match=r"'elephant'.*hollow star.*--model"):
        check_question("what color is the elephant?")
