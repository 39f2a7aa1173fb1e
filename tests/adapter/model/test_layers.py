"""Layers of other kinds: windows, masks in both directions, rows that are not computed, pooling."""

from __future__ import annotations

import pytest
import torch

import vrga_ext
from tests.adapter.explicit import explicit_greedy, language_attention
from tests.adapter.families import LOOSE, build, greedy, greedy_or_skip, logits

CONFIG = vrga_ext.VRGAConfig(**LOOSE)


ROW = [5, 6, (4, 4), 7, 8, 9, 10, 11, 12]


SHORT = [5, (4, 4), 7, 8]


@pytest.mark.parametrize("end", [0, 3])
@pytest.mark.parametrize("name", ["gemma3", "paligemma", "paligemma2", "molmo2", "kimi_k25"])
def test_statistics_without_padding(name, end):
    """One row has no mask, or one that shows in which direction tokens attend."""
    family = build(name)
    inputs = family.prompt(ROW)
    last = inputs["input_ids"].shape[1] - 1 - end
    with vrga_ext.enable(family.model, gamma=0.0, question_end=last) as handle:
        greedy(family.model, inputs, 1)
    (region,) = handle.regions
    with language_attention(family.model, "eager"), torch.no_grad():
        attentions = family.model(**inputs, output_attentions=True).attentions
    a = torch.stack([attentions[layer][0, :, last].double() for layer in region.layers])
    both_ways = name.startswith("paligemma")
    attended = last + 1 + (end if both_ways else 0)
    image = a[..., region.image_positions]
    torch.testing.assert_close(region.image_ratio, image.mean(-1) * attended, rtol=2e-5, atol=1e-6)


def test_attention_in_both_directions_that_no_mask_shows():
    """Without token types the model leaves it to sdpa's is_causal; the attention is the same."""
    family = build("paligemma")
    inputs = family.prompt(ROW)
    end = inputs["input_ids"].shape[1] - 4
    with vrga_ext.enable(family.model, gamma=0.0, question_end=end) as handle:
        greedy(family.model, inputs, 1)
        masked = handle.regions[0]
        del inputs["token_type_ids"]
        greedy(family.model, inputs, 1)
        unmasked = handle.regions[0]
    torch.testing.assert_close(unmasked.image_ratio, masked.image_ratio, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(unmasked.image_entropy, masked.image_entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 4.0])
@pytest.mark.parametrize("rows", [(ROW,), (ROW, SHORT)], ids=["unpadded", "padded"])
@pytest.mark.parametrize("name", ["gemma3", "gemma4", "aya_vision"])
def test_windows_in_a_static_cache(name, rows, gamma):
    """Layers with a window keep the last keys only, the others all that there is room for."""
    family = build(name)
    inputs = family.prompt(*rows)
    config = CONFIG.replace(gamma=gamma)
    static = {"cache_implementation": "static", "disable_compile": True}
    plain = greedy_or_skip(family.model, inputs, 4, **static)
    last = inputs["input_ids"].shape[1] - 1
    with vrga_ext.enable(family.model, config, question_end=last) as handle:
        ours = greedy(family.model, inputs, 4, **static)
        dynamic = greedy(family.model, inputs, 4)
    torch.testing.assert_close(logits(ours), logits(dynamic), atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(ours), logits(plain)) == (gamma == 0.0)
    kinds = family.model.config.get_text_config().layer_types
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    assert all(region.layers == full for region in handle.regions)


def rows_computed(family, inputs) -> list[int]:
    """Query rows of each layer while a prompt is read."""
    seen: list[int] = []

    def hook(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.append(hidden.shape[1])

    layers = family.model.get_decoder().layers
    hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    greedy(family.model, inputs, 1)
    for registered in hooks:
        registered.remove()
    return seen


@pytest.fixture(scope="module")
def shared():
    """A model whose last layer computes the prompt's last row only, and a prompt."""
    family = build("gemma4")
    inputs = family.prompt(ROW, SHORT)
    if rows_computed(family, inputs)[-1] != 1:
        pytest.skip("this transformers computes every row of every layer")
    return family, inputs


def test_question_that_ends_before_the_computed_rows(shared):
    family, inputs = shared
    columns = inputs["input_ids"].shape[1]
    plain = greedy(family.model, inputs, 4)
    with (
        vrga_ext.enable(family.model, CONFIG, question_end=[columns - 3, columns - 1]) as handle,
        pytest.warns(
            vrga_ext.VRGAWarning, match=r"layers \[3\] compute the end of the prompt only"
        ),
    ):
        ours = greedy(family.model, inputs, 4)
    early, late = handle.regions
    assert early.layers == late.layers == (0, 2, 3)
    assert early.image_ratio[2].isnan().all()
    assert not early.image_ratio[:2].isnan().any()
    assert not late.image_ratio.isnan().any()
    assert all(layer != 3 for layer, _ in early.visual_heads)
    assert torch.equal(logits(ours)[0], logits(plain)[0])
    tokens = ours.sequences[:, -4:]
    explicit = explicit_greedy(family.model, inputs, tokens, handle.regions, CONFIG)
    torch.testing.assert_close(logits(ours), logits(explicit), atol=2e-5, rtol=1e-4)


def test_rows_are_left_out_where_sdpa_leaves_them_out(shared):
    """The model asks for sdpa by its name; under another name it must do the same."""
    family, inputs = shared
    single = family.prompt(ROW)
    with vrga_ext.enable(family.model, CONFIG, question_end=20):
        assert rows_computed(family, inputs)[-1] == 1
        draft = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
        for kwargs in ({"cache_implementation": "static", "disable_compile": True}, draft):
            boosted = greedy(family.model, single, 4, **kwargs)
            assert boosted.sequences.shape[1] == single["input_ids"].shape[1] + 4
    for kwargs in ({"cache_implementation": "static", "disable_compile": True}, draft):
        plain = greedy(family.model, single, 4, **kwargs)
        with vrga_ext.enable(family.model, gamma=0.0, question_end=20):
            zero = greedy(family.model, single, 4, **kwargs)
        assert torch.equal(logits(zero), logits(plain))


@pytest.mark.parametrize("name", ["internvl", "aya_vision", "ovis2"])
def test_tiles_in_one_run_are_told_apart(name):
    """Four tiles of 4 x 4 tokens are as many tokens as one of 8 x 8, the tower's own grid."""
    family = build(name)
    inputs = family.prompt([5, (8, 8), 7, 8], [(4, 8), 9])
    with vrga_ext.enable(family.model, question_end=inputs["input_ids"].shape[1] - 1) as handle:
        greedy(family.model, inputs, 1)
    spans = [[tuple(span) for span in region.images] for region in handle.regions]
    assert spans == [[(16 * tile, 16, 0, (4, 4)) for tile in range(n)] for n in (4, 2)]
