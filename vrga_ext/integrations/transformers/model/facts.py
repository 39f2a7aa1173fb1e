"""What the hooks have to know of a model; found once, when VRGA is enabled."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vrga_ext.integrations.transformers.model.layers import full_layers
from vrga_ext.integrations.transformers.sequence.kv_cache import CacheArgument
from vrga_ext.model_identity import ModelIdentity
from vrga_ext.prompts import images
from vrga_ext.prompts.pictures import PictureReader
from vrga_ext.prompts.placeholders import Placeholders
from vrga_ext.prompts.question import QuestionFinder
from vrga_ext.settings import Settings


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """The parts of a model, what its forward calls take, and what its prompts are made of.

    Attributes
    ----------
    body : nn.Module
        Is given the tokens: ``model.base_model``, or the model where that is the decoder.
    decoder : nn.Module
        The language model without its head.
    text_config
        Configuration of the language model.
    layer_types : sequence of str
        Kind of each layer of the decoder; empty where the configuration names none.
    full_layers : frozenset of int
        Layers that attend through the attention function, without a window, as far as the dry run
        of :mod:`.layers` tells.
    body_arguments : tuple of str
        Names of the positional arguments of the body.
    body_cache, decoder_cache : CacheArgument
        Their argument that is the KV cache.
    placeholders : Placeholders
        Ids of image and video tokens.
    finder : QuestionFinder
        Finds the question's end.
    merge_size : int
        Patches along each side of an image token.
    fixed_grid : (int, int), optional
        Grid rows and columns of a model whose pictures all have one size.
    identity : ModelIdentity
        Which model it is.
    pictures : PictureReader
        Tells where the tokens of pictures lie.
    """

    body: nn.Module
    decoder: nn.Module
    text_config: Any
    layer_types: Any
    full_layers: frozenset[int]
    body_arguments: tuple[str, ...]
    body_cache: CacheArgument
    decoder_cache: CacheArgument
    placeholders: Placeholders
    finder: QuestionFinder
    merge_size: int
    fixed_grid: tuple[int, int] | None
    identity: ModelIdentity
    pictures: PictureReader

    def with_heads(self, settings: Settings) -> Settings:
        """Settings whose heads are pairs that the model has; a profile gives its first ones.

        Raises
        ------
        ValueError
            A layer without full attention, a head past the last one, or a profile of another model.
        """
        heads: Any = settings.heads
        if hasattr(heads, "check_model"):
            heads.check_model(self.identity)
            heads = heads.top()
        layers, count = self.full_layers, self.identity.num_heads
        for layer, head in heads or ():
            is_other = bool(layers) and layer not in layers  # unknown ones: the first prompt tells
            if is_other or (count is not None and head >= count):
                raise ValueError(
                    f"heads: wanted (layer, head) with a layer of {sorted(layers)} and a "
                    f"head below {count}, got {(layer, head)}"
                )
        return replace(settings, heads=heads)


def find_facts(
    model: Any, placeholders: Placeholders, finder: QuestionFinder, pictures: PictureReader
) -> ModelFacts:
    """The facts of a model whose attention has been switched."""
    text_config = model.config.get_text_config(decoder=True)
    decoder = model.get_decoder()
    body = model if model.base_model is decoder else model.base_model
    return ModelFacts(
        body=body,
        decoder=decoder,
        text_config=text_config,
        layer_types=getattr(text_config, "layer_types", None) or (),
        full_layers=full_layers(decoder, text_config, text_config._attn_implementation),
        body_arguments=tuple(inspect.signature(type(body).forward).parameters)[1:],
        body_cache=CacheArgument(body),
        decoder_cache=CacheArgument(decoder),
        placeholders=placeholders,
        finder=finder,
        merge_size=images.merge_size(model.config),
        fixed_grid=images.config_grid(model.config),
        identity=ModelIdentity.from_config(model.config),
        pictures=pictures,
    )
