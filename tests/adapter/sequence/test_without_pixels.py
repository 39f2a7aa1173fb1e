"""Image tokens that came without a picture."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import vrga_ext
from tests.adapter.families import CACHE, FAMILIES, LOOSE, ROWS, build, greedy

BARE = "image tokens and came without pixels or embeddings"


def bare(handle: vrga_ext.VRGAHandle) -> int:
    return sum(BARE in notice for notice in handle.notices)


def text_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs without the picture and its grids."""
    return {name: value for name, value in inputs.items() if name.endswith(("ids", "mask"))}


def test_bare_image_tokens_are_said_once(family):
    inputs = text_of(family.prompt(ROWS[0]))
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        if family.name == "llava":  # its positions do not need the grids
            with pytest.warns(vrga_ext.VRGAWarning, match=BARE):
                greedy(family.model, inputs, 2)
        with torch.no_grad():
            inputs.pop("mm_token_type_ids", None)
            for _ in range(2):
                family.model(**inputs)
        assert bare(handle) == 1


def test_pictures_and_embeddings_are_not(family):
    model, inputs = family.model, family.prompt(ROWS[0])
    image = family.image_columns(inputs)
    with vrga_ext.enable(model, **LOOSE) as handle:
        output = greedy(model, inputs, 2)
        follow = {"input_ids": torch.cat([output.sequences, torch.tensor([[20, 21]])], 1)}
        follow["attention_mask"] = torch.ones_like(follow["input_ids"])
        if family.name != "llava":
            follow["mm_token_type_ids"] = torch.zeros_like(follow["input_ids"], dtype=torch.int)
        greedy(model, follow, 1, **{CACHE: output[CACHE]})  # the cache has the picture
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        with torch.no_grad(), handle.image_mask(image):
            model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
        with torch.no_grad():
            model(**inputs, **{CACHE: DynamicCache(config=model.config)})
        assert handle.regions[0].image_positions.tolist() == image[0].nonzero().flatten().tolist()
        assert bare(handle) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_has_its_pictures_overlooked(name):
    family = build(name)
    with vrga_ext.enable(family.model, **LOOSE) as handle:
        greedy(family.model, family.prompt(ROWS[0]), 1)
        with torch.no_grad():
            family.model(**family.prompt(ROWS[0]))
        assert bare(handle) == 0
        assert len(handle.regions[0].image_positions)


def test_paused_prompts_are_not(family):
    inputs = text_of(family.prompt(ROWS[0]))
    inputs.pop("mm_token_type_ids", None)
    with vrga_ext.enable(family.model, **LOOSE) as handle, handle.pause(), torch.no_grad():
        family.model(**inputs)
    assert bare(handle) == 0
