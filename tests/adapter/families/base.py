"""What the tiny models have in common: the registry, prompts, weights, greedy generation.

A group module registers builders with :func:`family`. A builder takes the keywords of the text
configuration and returns the model class, its configuration and a :class:`Family` subclass, which
knows how a prompt of that architecture looks; :func:`build` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

# What the KV cache is called in a call and in an output; transformers 5.24 renamed it.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__annotations__ else "past_key_values"
IMAGE, VIDEO, VISION_START, VISION_END, PAD = 100, 101, 102, 103, 0
# Values of ``mm_token_type_ids``.
TEXT_TYPE, IMAGE_TYPE, VIDEO_TYPE = 0, 1, 2
# Prompts: an image and a question, with different lengths, and two images in a row.
ROWS = (
    [5, 6, (4, 4), 7, 8, 9, 10],
    [11, (4, 4), 12, 13, 14, 15, 16, 17, 18],
    [5, (4, 4), (4, 4), 7, 8, 9],
)
# Thresholds that choose several heads of a model with twelve, and a boost that shows.
LOOSE = {"gamma": 4.0, "efr_percentile": 40, "ratio_percentile": 60, "focus_min_tokens": 2}
# Keywords of every text configuration; token ids from 104 on are free for a family's own.
TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Video:
    """A video in a prompt: frames as the language model sees them, each rows x columns tokens."""

    frames: int
    rows: int
    columns: int


Image = tuple[int, int]  # rows and columns of tokens
Item = int | Image | Video


@dataclass(frozen=True)
class Family:
    """A tiny model and what a prompt for it looks like.

    Attributes
    ----------
    image_tokens
        Ids that stand for images and video frames in a prompt.
    fixed_image
        Size of every image of a family whose images have one size; so have its frames, whatever
        is asked for.
    peaked_norms
        What is added to the weights of query and key norms: less where scores are not scaled.
    implementations
        What the language model can run on; the first one where another is asked for.
    """

    name: str
    model: Any
    media: frozenset[str]  # of "image" and "video"
    image_tokens: ClassVar[tuple[int, ...]] = (IMAGE,)
    fixed_image: ClassVar[Image | None] = None
    peaked_norms: ClassVar[float] = 1.5
    implementations: ClassVar[tuple[str, ...]] = ("sdpa", "eager")

    def prompt(self, *rows: list[Item], seed: int = 0) -> dict[str, Tensor]:
        """Left-padded inputs; a row is a list of token ids, images as (rows, columns), videos."""
        media = [item for row in rows for item in row if not isinstance(item, int)]
        images = [item for item in media if isinstance(item, tuple)]
        videos = [item for item in media if isinstance(item, Video)]
        ids, types = [], []
        for row in rows:
            written = [(token, kind) for item in row for token, kind in self._typed(item)]
            ids.append([token for token, _ in written])
            types.append([kind for _, kind in written])
        width = max(map(len, ids))
        padded = torch.tensor([[PAD] * (width - len(row)) + row for row in ids])
        inputs = {
            "input_ids": padded,
            "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in ids]),
        }
        kinds = torch.tensor([[TEXT_TYPE] * (width - len(row)) + row for row in types])
        generator = torch.Generator().manual_seed(seed)
        return inputs | self._tensors(kinds, images, videos, generator)

    def image_columns(self, inputs: dict[str, Tensor]) -> Tensor:
        """Columns of image and video tokens, bool [B, S]."""
        return torch.isin(inputs["input_ids"], torch.tensor(self.image_tokens))

    def spans(self, row: list[Item]) -> list[tuple[int, Image | None]]:
        """Tokens and grid of each image and frame of a row, the grid None if it is not known."""
        return [span for item in row if not isinstance(item, int) for span in self._spans(item)]

    def _typed(self, item: Item) -> list[tuple[int, int]]:
        """Tokens of an item, each with its type."""
        if isinstance(item, int):
            return [(item, TEXT_TYPE)]
        kind = VIDEO_TYPE if isinstance(item, Video) else IMAGE_TYPE
        tokens = self._tokens(item)
        return [(token, kind if token in self.image_tokens else TEXT_TYPE) for token in tokens]

    # ---- what a family is peculiar in --------------------------------------------------------

    def _tokens(self, item: Image | Video) -> list[int]:
        """Token ids of an image or a video, with the special tokens around it."""
        raise NotImplementedError

    def _spans(self, item: Image | Video) -> list[tuple[int, Image | None]]:
        """Tokens and grid of an image, or of each frame of a video."""
        if isinstance(item, Video):
            return [(item.rows * item.columns, (item.rows, item.columns))] * item.frames
        return [(item[0] * item[1], item)]

    def _tensors(
        self, types: Tensor, images: list[Image], videos: list[Video], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Pixels, grids and what else the model takes, for all images and videos in order.

        ``types`` is int64 [B, S], the tokens' types.
        """
        raise NotImplementedError


Parts = tuple[Any, Any, type[Family]]  # model class, configuration, family


@dataclass(frozen=True)
class Registered:
    """A family of the registry; calling it builds the model."""

    name: str
    media: frozenset[str]
    mixes: bool  # whether transformers takes images and videos in one batch
    builder: Callable[..., Parts]
    missing: str | None  # why the installed transformers cannot build it

    def __call__(self, *, seed: int = 0, attn_implementation: str = "sdpa", **text: Any) -> Family:
        """A tiny random model; the test is skipped where transformers has no such family."""
        if self.missing:
            pytest.skip(self.missing)
        torch.manual_seed(seed)
        model_class, config, kind = self.builder(**TEXT | text)
        if attn_implementation not in kind.implementations:
            attn_implementation = kind.implementations[0]
        config._attn_implementation = attn_implementation
        model = model_class(config).eval()
        make_peaked(model, kind.peaked_norms)
        model.generation_config.eos_token_id = None
        return kind(self.name, model, self.media)


FAMILIES: dict[str, Registered] = {}


def family(
    name: str, *, media: Iterable[str], needs: str, mixes: bool = True
) -> Callable[[Callable[..., Parts]], Callable[..., Parts]]:
    """Register a builder; ``needs`` is the class of transformers that the family stands on."""

    def register(builder: Callable[..., Parts]) -> Callable[..., Parts]:
        missing = None
        if needs not in dir(transformers):  # without importing it
            missing = f"transformers {transformers.__version__} has no {needs}"
        FAMILIES[name] = Registered(name, frozenset(media), mixes, builder, missing)
        return builder

    return register


def build(name: str, *, seed: int = 0, attn_implementation: str = "sdpa", **text: Any) -> Family:
    """A tiny random model; ``text`` changes its text configuration."""
    return FAMILIES[name](seed=seed, attn_implementation=attn_implementation, **text)


def make_peaked(model: Any, norms: float = 1.5) -> None:
    """Scale the weights so that attention is peaked and heads differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                parameter.add_(norms)  # of what the projections give, only the direction is kept
            elif "q_proj" in name or "k_proj" in name:
                parameter.mul_(8.0)
            elif "lm_head" in name or "embed_tokens" in name:
                parameter.mul_(20.0)


def greedy(model: Any, inputs: dict[str, Tensor], new_tokens: int = 6, **kwargs: Any) -> Any:
    """Greedy generation with the logits of every step."""
    return model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=kwargs.pop("do_sample", False),
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )


def logits(output: Any) -> Tensor:
    """Logits [steps, B, vocabulary] of a generation."""
    return torch.stack(output.logits)


def greedy_or_skip(model: Any, inputs: dict[str, Tensor], new_tokens: int, **kwargs: Any) -> Any:
    """:func:`greedy` without VRGA; the test is skipped where transformers itself fails."""
    assert "generate" not in model.__dict__, "VRGA is enabled"
    try:
        return greedy(model, inputs, new_tokens, **kwargs)
    except RuntimeError as error:
        version = transformers.__version__
        pytest.skip(f"transformers {version} fails by itself: {str(error).splitlines()[0]}")
