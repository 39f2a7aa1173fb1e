"""Which tokens of a prompt stand for images.

The model's configuration, its processor or the caller names them; some models take their positions
as an argument of every call instead.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

# Fields with the id of a placeholder token, of configurations and of processors.
_IMAGE_NAMES = ("image_token_id", "image_token_index")
_VIDEO_NAMES = ("video_token_id", "video_token_index")
_OF_PROCESSORS = ("image_token_id", "video_token_id")
# Arguments with the positions of image features, [B, S], 1 for an image token. Models with such an
# argument ignore the ids there, which may be those of text.
POSITION_ARGUMENTS = frozenset({"image_embeds_position_mask"})


class Placeholders(NamedTuple):
    """The tokens whose embeddings the model replaces by image and video features.

    Attributes
    ----------
    ids : tuple of int
        Token ids for images and videos; empty for a model that takes positions in every call.
    video_ids : tuple of int
        Those of ``ids`` that only videos use.
    unset : str, optional
        Field of the configuration that should name the image token and is None.

    Examples
    --------
    >>> Placeholders(ids=(5, 6), video_ids=(6,))
    Placeholders(ids=(5, 6), video_ids=(6,), unset=None)
    """

    ids: tuple[int, ...]
    video_ids: tuple[int, ...] = ()
    unset: str | None = None


def find_placeholders(
    model: Any, processor: Any = None, image_token_id: Any = None
) -> Placeholders:
    """The placeholder tokens of a model.

    Those that its configuration names, since the model puts image features there. If it names
    none, the given ones. Without these: none for a model that takes positions in every call; for
    other models the processor's, if the model replaces tokens by features. (A model may also read
    images in cross-attention, or before the prompt.)

    Parameters
    ----------
    model
        A model of transformers.
    processor
        Its processor or tokenizer.
    image_token_id
        An id or several, from the caller.

    Returns
    -------
    Placeholders

    Raises
    ------
    TypeError
        ``image_token_id`` is neither an integer nor several integers.
    ValueError
        An id is not in the vocabulary, or not among those that the configuration names; no id is
        known; or the processor names one, but the model has no known way of replacing it.
    """
    vocabulary = _vocabulary(model)
    given = None if image_token_id is None else _checked(image_token_id, vocabulary)
    named = _named_by_configuration(model.config)
    if named.ids and named.unset is None:
        if given is None:
            return named
        if not set(given) <= set(named.ids):
            raise ValueError(
                f"image_token_id: wanted ids among {sorted(named.ids)}, which the configuration "
                f"names and where the model puts image features, got {list(given)}"
            )
    elif given is None and _takes_positions(model):
        return Placeholders(())
    known = _placeholders(*([_token_of(processor, name)] for name in _OF_PROCESSORS))
    videos = tuple(dict.fromkeys(named.video_ids + known.video_ids))
    if given is not None:
        return Placeholders(given, tuple(token for token in videos if token in given), named.unset)
    if known.ids and not _replaces_tokens(model):
        raise ValueError(
            f"model: wanted one that replaces placeholder tokens by image features, got "
            f"{type(model).__name__}, which has no get_placeholder_mask; if it replaces them in "
            f"another way, pass image_token_id={known.ids[0]}"
        )
    if not known.ids:
        given_by = "" if processor is None else f", and {type(processor).__name__} names none"
        remedy = "image_token_id="
        if processor is None:
            remedy = f"the model's processor= or {remedy}"
        raise ValueError(
            "model: wanted a multimodal model whose configuration names an image token "
            f"({' or '.join(_IMAGE_NAMES)}), got {type(model.config).__name__} without one"
            f"{given_by}; pass {remedy}"
        )
    for token in known.ids:
        if vocabulary is not None and not 0 <= token < vocabulary:
            raise ValueError(
                f"processor: wanted an image token in the model's vocabulary of {vocabulary}, got "
                f"{token} (does the processor belong to the model, and was the model resized?)"
            )
    return Placeholders(tuple(dict.fromkeys(known.ids + videos)), videos, named.unset)


def positions_told(given: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor | None:
    """Image tokens, if an argument of the call holds their positions.

    Parameters
    ----------
    given
        Arguments of the call, by name.
    shape
        (B, S) of the tokens.

    Returns
    -------
    bool [B, S], optional
        None without such an argument.
    """
    for name in POSITION_ARGUMENTS:
        value = given.get(name)
        if isinstance(value, Tensor) and value.shape == shape:
            return value.detach().cpu() == 1
    return None


def _takes_positions(model: Any) -> bool:
    taken = inspect.signature(type(model).forward).parameters
    return any(name in taken for name in POSITION_ARGUMENTS)


def _replaces_tokens(model: Any) -> bool:
    """Whether a model finds placeholders by their ids, as models in transformers do."""
    return any(hasattr(part, "get_placeholder_mask") for part in (model, model.base_model))


def _named_by_configuration(config: Any) -> Placeholders:
    """Placeholders that the configuration names, or that of the vision tower."""
    for part in (config, getattr(config, "vision_config", None)):
        images = {name: getattr(part, name) for name in _IMAGE_NAMES if hasattr(part, name)}
        videos = [getattr(part, name, None) for name in _VIDEO_NAMES]
        found = _placeholders(list(images.values()), videos)
        if found.ids or images:
            empty = all(token is None for token in images.values())
            return found._replace(unset=next(iter(images)) if images and empty else None)
    return Placeholders(())


def _token_of(processor: Any, name: str) -> int | None:
    """Id of a token, from a field of the processor or its tokenizer with its id or its text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    for owner in (processor, tokenizer):
        token = getattr(owner, name, None)
        if isinstance(token, int):
            return token
    for owner in (processor, tokenizer):
        text = getattr(owner, name.removesuffix("_id"), None)
        if text is not None:
            token = tokenizer.convert_tokens_to_ids(str(text))
            if isinstance(token, int) and token != getattr(tokenizer, "unk_token_id", None):
                return token
    return None


def _placeholders(images: list[int | None], videos: list[int | None]) -> Placeholders:
    every = dict.fromkeys(token for token in images + videos if token is not None)
    return Placeholders(tuple(every), tuple(token for token in every if token in videos))


def _vocabulary(model: Any) -> int | None:
    """Number of tokens with an embedding; None if unknown."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        rows = None
    return rows or getattr(model.config.get_text_config(decoder=True), "vocab_size", None)


def _checked(image_token_id: Any, vocabulary: int | None) -> tuple[int, ...]:
    """Check ids from the caller: one, or a sequence, array or tensor of several."""
    value = image_token_id.tolist() if hasattr(image_token_id, "tolist") else image_token_id
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    ids = list(value) if several else [value]
    try:
        if any(isinstance(token, bool) for token in ids):
            raise TypeError
        ids = [operator.index(token) for token in ids]
    except TypeError:
        raise TypeError(
            f"image_token_id: wanted a token id or several, got {image_token_id!r}"
        ) from None
    if not ids or any(token < 0 or (vocabulary and token >= vocabulary) for token in ids):
        within = "" if vocabulary is None else f" of a vocabulary of {vocabulary}"
        raise ValueError(f"image_token_id: wanted token ids{within}, got {image_token_id!r}")
    return tuple(dict.fromkeys(ids))
