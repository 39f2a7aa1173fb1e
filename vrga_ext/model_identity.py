"""Which model a capture or a head profile is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelIdentity:
    """What tells whether two models have the same heads, and whether they are the same.

    Attributes
    ----------
    model_type : str
        Architecture, as the configuration names it.
    num_layers : int, optional
        Layers of the language model; None if its configuration gives no number.
    num_heads : int, optional
        Query heads of each layer; None if the configuration gives no number.
    name : str, optional
        Name on the hub, or folder, that the model was loaded from.
    revision : str, optional
        Commit on the hub that it was loaded from.

    Examples
    --------
    >>> from vrga_ext.demo.answers import load_demo
    >>> model, processor = load_demo()
    >>> identity = ModelIdentity.from_config(model.config)
    >>> identity.model_type, identity.num_layers, identity.num_heads
    ('qwen2_5_vl', 4, 8)
    """

    model_type: str
    num_layers: int | None
    num_heads: int | None
    name: str | None = None
    revision: str | None = None

    @classmethod
    def from_config(cls, config: Any) -> ModelIdentity:
        """The identity that a configuration of transformers tells.

        Parameters
        ----------
        config
            Of the whole model.
        """
        text_config = config.get_text_config(decoder=True)
        return cls(
            config.model_type,
            _count(text_config, "num_hidden_layers"),
            _count(text_config, "num_attention_heads"),
            getattr(config, "_name_or_path", None) or None,
            getattr(config, "_commit_hash", None),
        )


def _count(config: Any, name: str) -> int | None:
    """A number of a configuration; some have one per layer instead."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None
