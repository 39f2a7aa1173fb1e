"""Where the guides of a prompt lie in its tokens, and the pictures that they are about."""

from __future__ import annotations

from torch import Tensor

from vrga_ext.integrations.transformers.model.facts import ModelFacts
from vrga_ext.integrations.transformers.sequence.prompt import Prompt
from vrga_ext.prompts import images
from vrga_ext.prompts.guided import Places, find_places
from vrga_ext.prompts.pictures import PromptPictures


def prompt_places(prompt: Prompt, image: Tensor, facts: ModelFacts) -> tuple[Places | None, ...]:
    """Find the guide of each sample of a prompt; None for a sample without one.

    Parameters
    ----------
    prompt
        Its tokens are known.
    image : bool [B, N]
        Image tokens of all positions.
    facts
        Of the model.

    Raises
    ------
    ValueError
        A guide does not fit its sample.
    """
    assert prompt.ids is not None
    pictures = _pictures(prompt, image, facts)
    found: list[Places | None] = []
    for sample, own in enumerate(prompt.settings):
        if own.guide is None:
            found.append(None)
            continue
        ids = prompt.ids[sample]
        try:
            found.append(find_places(own.guide, image[sample], ids, pictures[sample]))
        except ValueError as error:
            raise ValueError(f"{error} (sample {sample})") from error
    return tuple(found)


def _pictures(prompt: Prompt, image: Tensor, facts: ModelFacts) -> list[PromptPictures]:
    """The pictures of each sample that come with the call."""
    assert prompt.ids is not None
    first = max(image.shape[1] - prompt.ids.shape[1], 0)
    own = image[:, first:]
    ids = prompt.ids[:, -own.shape[1] :]
    kinds = images.token_kinds(own, ids, prompt.token_types, facts.placeholders.video_ids)
    grids = prompt.grids.get(images.IMAGE_TYPE)
    counts = None if grids is None else (grids.prod(1) // facts.merge_size**2).tolist()
    found = []
    for of_sample in kinds == images.IMAGE_TYPE:
        positions = of_sample.nonzero().flatten() + first
        taken: list[int] | None = None
        if counts is not None:
            taken = []
            while counts and sum(taken) < len(positions):
                taken.append(counts.pop(0))
            if sum(taken) != len(positions):
                taken = counts = None
        found.append(PromptPictures(facts.pictures, positions, taken))
    return found
