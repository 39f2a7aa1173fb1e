"""``capture`` against the weights that an eager model returns."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

import vrga_ext
from tests.adapter.checks import skip_unless_stock_equals_its_loop
from tests.adapter.families import CORE, IMAGE, LOOSE, ROWS, build, greedy, logits
from tests.adapter.observe.stored_weights import (
    STEPS,
    assert_all_close,
    assert_rows,
    assert_same,
    attentions,
    question_end,
)
from vrga_ext import Capture, ops
from vrga_ext.region import Region

QUESTION = 20  # a column of the prompt that is a token of every row, after every image


@pytest.fixture(scope="module", params=[*CORE, "qwen3_vl", "gemma3", "paligemma"])
def pair(request):
    """The same weights behind sdpa and behind eager."""
    return build(request.param), build(request.param, attn_implementation="eager")


def capture_of(family, inputs, new_tokens=STEPS, **kwargs) -> Capture:
    with vrga_ext.capture(family.model, **kwargs) as recording:
        greedy(family.model, inputs, new_tokens)
    return recording.last


def stored(output, prompt_rows: list[int], layers: tuple[int, ...]) -> list[torch.Tensor]:
    """Rows [S, L, H, keys] of an eager generation: of the prompt, then of each generated token."""
    weights = [torch.stack([step[layer] for layer in layers], 1) for step in output.attentions]
    prompt = [weights[0][:, :, :, row] for row in prompt_rows]
    return prompt + [step[:, :, :, 0] for step in weights[1:]]


def test_statistics_and_rows_are_those_of_eager_weights(pair):
    ours, theirs = pair
    inputs = ours.prompt(*ROWS)
    last = question_end(inputs)
    middle = last - 8  # of an image, in the last row
    plain, output = greedy(ours.model, inputs, STEPS), attentions(theirs, inputs)
    with vrga_ext.capture(ours.model, prompt_rows=[middle, last], rows=True) as recording:
        captured = greedy(ours.model, inputs, STEPS)
    assert torch.equal(logits(captured), logits(plain))
    capture = recording.last
    assert capture.positions[0].tolist() == [middle, *range(last, last + STEPS)]
    assert capture.prompt_rows == 2
    weights = stored(output, [middle, last], capture.layers)
    assert_rows(capture, weights, ours.image_columns(inputs))
    assert torch.equal(capture.token_ids[:, 2:], captured.sequences[:, last + 1 : -1])
    assert torch.equal(capture.token_ids[:, 0], inputs["input_ids"][:, middle])
    assert not hasattr(ours.model, "_vrga_handle")


def test_question_row_and_regions_are_those_of_enable(family):
    inputs = family.prompt(*ROWS)
    end = question_end(inputs)
    with vrga_ext.enable(family.model, question_end=end, **LOOSE) as handle:
        greedy(family.model, inputs, 2)
    with vrga_ext.capture(family.model, question_end=end) as recording:
        greedy(family.model, inputs, 2)
    capture = recording.last
    assert capture.rows is None
    for sample, region in enumerate(handle.regions):
        assert capture.layers == region.layers
        found = capture.image_ratio[sample, :, :, 0].double()
        torch.testing.assert_close(found, region.image_ratio)
        n = len(region.image_positions)
        assert torch.equal(capture.image_positions[sample, :n], region.image_positions)
        assert capture.images[sample] == region.images
        assert capture.grid(sample) == region.grid
        assert capture.region(sample).question_end == end


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("config", [{}, {"gate": "dynamic"}, {"gamma": 0.0, "suppress": 0.0}])
def test_reweighted_rows_are_those_of_an_eager_model(eager, attn_implementation, config):
    inputs = eager.prompt(*ROWS)
    end = question_end(inputs)
    ours = build("qwen2_5_vl", attn_implementation=attn_implementation)
    with vrga_ext.enable(eager.model, question_end=end, **LOOSE | config):
        output = attentions(eager, inputs)
    with vrga_ext.enable(ours.model, question_end=end, **LOOSE | config) as handle:
        boosted = greedy(ours.model, inputs, STEPS)
        with vrga_ext.capture(ours.model, rows="all") as recording:
            captured = greedy(ours.model, inputs, STEPS)
        assert handle._runtime.capture is None
    assert torch.equal(logits(captured), logits(boosted))
    capture = recording.last
    assert capture.gate.any()
    assert not capture.gate[..., 0].any()
    assert_all_close(capture.as_attentions()[1:], output.attentions[1:])
    if not config:
        heads = {
            (sample, *head) for sample, r in enumerate(handle.regions) for head in r.visual_heads
        }
        assert set(map(tuple, capture.gate[..., -1].nonzero().tolist())) == heads
    with vrga_ext.enable(ours.model, question_end=end, **LOOSE | config):
        on_image = capture_of(ours, inputs, rows=True)
    for reweighted in (True, False):
        torch.testing.assert_close(
            on_image.image_rows(reweighted=reweighted), capture.image_rows(reweighted=reweighted)
        )


def test_as_attentions(family, eager):
    inputs = family.prompt(*ROWS)
    end = question_end(inputs)
    output = attentions(eager, inputs)
    prompt_rows = [QUESTION, end]
    with vrga_ext.capture(family.model, rows="all", prompt_rows=prompt_rows) as recording:
        greedy(family.model, inputs, STEPS)
    ours = recording.last.as_attentions()
    theirs = [layer[:, :, prompt_rows] for layer in output.attentions[0]]
    assert_all_close(ours, [theirs, *output.attentions[1:]])
    with vrga_ext.capture(family.model, rows=True) as recording:
        greedy(family.model, inputs, STEPS)
    image = (inputs["input_ids"] == IMAGE)[:, None, None]
    for step, other in zip(recording.last.as_attentions()[1:], output.attentions[1:], strict=True):
        for layer, weights in zip(step, other, strict=True):
            seen = torch.nn.functional.pad(image, (0, layer.shape[-1] - image.shape[-1]))
            torch.testing.assert_close(layer, weights * seen, atol=1e-5, rtol=1e-5)
    statistics = capture_of(family, inputs, 2)
    with pytest.raises(ValueError, match="rows: wanted a capture made with rows=True"):
        statistics.as_attentions()


@pytest.mark.parametrize("share", [1e-4, 1e-9, 1e-20])
def test_reweighted_rows_where_little_is_left(family, share):
    """Mask mode in a head with almost all of its attention on the image."""
    capture = capture_of(family, family.prompt(ROWS[0]), rows="all")
    image = torch.zeros(capture.rows.shape[4], dtype=torch.bool)
    image[capture.image_positions[0]] = True
    rows = torch.where(image, (1 - share) / image.sum(), share / (~image).sum())
    none = (0.0,) * len(capture.focus_weight)
    every = {"gate": torch.ones_like(capture.gate), "image_weight": none, "focus_weight": none}
    all_keys = replace(capture, rows=rows.expand_as(capture.rows), **every).reweighted_rows()
    torch.testing.assert_close(all_keys.sum(-1), torch.ones(all_keys.shape[:-1]))
    assert not all_keys[..., image].any()
    alone = {"rows": capture.image_rows(), "columns": capture.image_positions}
    assert not replace(capture, **alone, **every).reweighted_rows().any()


def test_rows_of_each_sample():
    family = build("llava")
    inputs = family.prompt(*ROWS)
    chunks = {"prefill_chunk_size": 7}
    skip_unless_stock_equals_its_loop(family.model, inputs, chunks)
    mask = inputs["attention_mask"]
    starts = [int(row.nonzero()[0]) for row in mask]
    wanted = [[starts[0] + 20, starts[0] + 21], [starts[1] + 20], []]
    with vrga_ext.capture(family.model, prompt_rows=wanted) as recording:
        greedy(family.model, inputs, 2, **chunks)
    prompt = recording.last.prompt
    assert prompt.positions.tolist() == [
        [starts[0] + 20, starts[0] + 21],
        [starts[1] + 20, -1],
        [-1, -1],
    ]
    assert prompt.image_ratio[0].isfinite().all()
    assert prompt.image_ratio[2].isnan().all()
    assert prompt.image_ratio[1, ..., 1].isnan().all()
    with vrga_ext.capture(family.model, prompt_rows=[starts[0] + 20]) as recording:
        greedy(family.model, inputs, 2)
    torch.testing.assert_close(recording.last.image_ratio[0, ..., 0], prompt.image_ratio[0, ..., 0])


def test_a_row_that_sees_no_image_token_has_no_statistics(family):
    """Of a sample without an image, or before it: left out of means and fits, not counted as 0."""
    inputs = family.prompt([5, (4, 4), 7, 8], [5, 6, 7, 8])
    end = question_end(inputs)
    for rows in (False, True):
        with vrga_ext.capture(family.model, rows=rows, prompt_rows=[[0, end], [end]]) as recording:
            greedy(family.model, inputs, 2)
        capture = recording.last
        assert capture.image_keys.tolist() == [[0, 16, 16], [0, 0, 0]]
        blind = (capture.image_keys == 0)[:, None, None].expand_as(capture.image_ratio)
        for name in ("image_ratio", "image_entropy", "joint_entropy", "efr"):
            assert torch.equal(getattr(capture, name).isnan(), blind), name


@pytest.mark.parametrize("row", [3, 15])
def test_every_key_of_a_row_within_the_image(family, eager, row):
    """Row 3 ends before the image does; row 15 sees as many keys as there are image tokens."""
    inputs = family.prompt([5, (4, 4), 7, 8])
    with torch.no_grad():
        weights = eager.model(**inputs, output_attentions=True).attentions
    with vrga_ext.capture(family.model, rows="all", prompt_rows=row) as recording:
        greedy(family.model, inputs, 1)
    capture = recording.last
    assert_all_close(capture.as_attentions(), [[w[:, :, row, None, : row + 1] for w in weights]])
    image = inputs["input_ids"][0] == IMAGE
    wanted = torch.stack([w[:, :, row, None][..., image] for w in weights], 1)
    torch.testing.assert_close(capture.image_rows(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(capture.image_rows().sum(-1), capture.image_share)


@pytest.mark.parametrize("rows", [False, True])
def test_save_and_load(family, rows, tmp_path):
    inputs = family.prompt(*ROWS)
    end = question_end(inputs)
    with vrga_ext.enable(family.model, question_end=end, **LOOSE):
        capture = capture_of(family, inputs, 3, rows=rows)
    capture.save(tmp_path / "capture.safetensors")
    loaded = Capture.load(tmp_path / "capture.safetensors")
    assert_same(loaded, capture, Capture)
    for region, other in zip(loaded.regions, capture.regions, strict=True):
        assert_same(region, other, Region)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    content = (tmp_path / "capture.safetensors").read_bytes()
    for name, broken in (("text", b"hello"), ("empty", b""), ("cut", content[: len(content) // 2])):
        (tmp_path / name).write_bytes(broken)
    for name in ("other.safetensors", "text", "empty", "cut"):
        with pytest.raises(ValueError, match=rf"path: wanted .* Capture\.save, got .*{name}"):
            Capture.load(tmp_path / name)
    for name in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=f"path: wanted a file .* got {name}"):
            Capture.load(name)
    with pytest.raises(OSError, match=r"path: wanted a file to write to, got .*nowhere/new"):
        capture.save(tmp_path / "nowhere" / "new")
    assert capture not in [loaded]


def test_dataframe(family, monkeypatch):
    with vrga_ext.capture(family.model) as recording:
        greedy(family.model, family.prompt(*ROWS), 3)
    capture = recording.last
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="wanted pandas"):
            capture.to_dataframe()
    pytest.importorskip("pandas", reason="needs pandas, which the package does not ask for")
    table = capture.to_dataframe()
    assert len(table) == capture.image_ratio.numel()
    line = table[(table["sample"] == 1) & (table["layer"] == 2) & (table["head"] == 3)].iloc[2]
    assert line["image_ratio"] == capture.image_ratio[1, 2, 3, 2].item()
    assert line["token_id"] == capture.token_ids[1, 2].item()
    assert bool(line["generated"])


def test_errors_leave_the_model_as_it_was(family):
    model, inputs = family.model, family.prompt(*ROWS)
    before = set(model.__dict__)
    columns = inputs["input_ids"].shape[1]
    with (
        pytest.raises(ValueError, match=r"wanted a prompt with an image, got none \(the model was"),
        vrga_ext.capture(model) as recording,
    ):
        recording.last  # noqa: B018
    with pytest.warns(vrga_ext.VRGAWarning), vrga_ext.capture(model) as recording:
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
    assert recording.captures == ()
    with pytest.raises(ValueError, match="the prompt has no image token"):
        recording.last  # noqa: B018
    for rows, what in [
        (columns, rf"wanted indices in \[0, {columns}\) of the prompt, got {columns} \(sample 0\)"),
        (-1, "got -1"),
        (0, "wanted tokens of sample 0, got 0, which is padding"),
        ([[20], [20]], r"wanted one list for each sample of the prompt \(3\), got 2"),
    ]:
        with pytest.raises(ValueError, match=what), vrga_ext.capture(model, prompt_rows=rows):
            greedy(model, inputs)
    for rows in ("answer", 1.5, [None], [[1], 2]):
        with pytest.raises(TypeError, match="prompt_rows: wanted 'question', an index"):
            capture_of(family, inputs, prompt_rows=rows)
    with pytest.raises(ValueError, match="rows: wanted False, True or 'all', got 'some'"):
        capture_of(family, inputs, rows="some")
    nested = pytest.raises(ValueError, match="wanted one capture at a time")
    with vrga_ext.capture(model), nested:
        capture_of(family, inputs)
    with vrga_ext.enable(model) as handle:
        with pytest.raises(ValueError, match="question_end: wanted that of the handle, 'auto'"):
            capture_of(family, inputs, question_end=3)
        assert handle._runtime.capture is None
    with pytest.raises(TypeError, match="PreTrainedModel"), vrga_ext.capture(torch.nn.Linear(1, 1)):
        pass
    with pytest.raises(ValueError, match="multimodal"), vrga_ext.capture(model.get_decoder()):
        pass
    assert set(model.__dict__) == before
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_rows_that_are_not_wanted_are_not_computed(family, monkeypatch):
    """With no row of the prompt wanted, its forward call computes the question's row alone."""
    inputs = family.prompt(*ROWS)
    computed = []
    statistics = ops.row_statistics

    def counted(query, *arguments, **options):
        computed.append(query.shape)
        return statistics(query, *arguments, **options)

    monkeypatch.setattr(ops, "row_statistics", counted)
    with vrga_ext.enable(family.model, question_end=20, **LOOSE), torch.no_grad():
        family.model(**inputs)
        alone = len(computed)
        with vrga_ext.capture(family.model, prompt_rows=[]):
            family.model(**inputs)
            assert len(computed) == 2 * alone > 0
        with vrga_ext.capture(family.model, prompt_rows=[21]):
            family.model(**inputs)
            assert len(computed) == 4 * alone
