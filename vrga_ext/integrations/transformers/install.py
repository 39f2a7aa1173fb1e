"""What is done to a model when VRGA is enabled, and undone when it is disabled."""

from __future__ import annotations

import functools
from typing import Any

from vrga_ext.integrations.transformers.call.attention import IMPLEMENTATIONS
from vrga_ext.integrations.transformers.call.hooks import ForwardHooks
from vrga_ext.integrations.transformers.model.facts import find_facts
from vrga_ext.integrations.transformers.model.layers import check_decoder
from vrga_ext.integrations.transformers.runtime import Runtime
from vrga_ext.prompts.pictures import PictureReader
from vrga_ext.prompts.placeholders import Placeholders
from vrga_ext.prompts.question import QuestionFinder

# Entries of continuous batching, which builds no mask for an attention function it does not know.
_CONTINUOUS_BATCHING = ("generate_batch", "init_continuous_batching")


class Installation:
    """The attention function, hooks and methods of one model.

    Parameters
    ----------
    model
        A transformers model.
    runtime
        What the hooks read and publish.
    placeholders, finder, pictures
        Which tokens are images, where questions end, and where the tokens of pictures lie.

    Raises
    ------
    ValueError
        The model sees images through cross-attention, or its configuration is in use already.
    """

    def __init__(
        self,
        model: Any,
        runtime: Runtime,
        placeholders: Placeholders,
        finder: QuestionFinder,
        pictures: PictureReader,
    ) -> None:
        self._model, self._runtime, self._placeholders = model, runtime, placeholders
        self._text_config = model.config.get_text_config(decoder=True)
        _refuse_cross_attention(model, self._text_config)
        self._base: str = self._text_config._attn_implementation
        if self._base in IMPLEMENTATIONS.values():
            raise ValueError(
                f"model: wanted a configuration of its own, with an attention of transformers, got "
                f"{self._base!r}: either the configuration is shared with another model in which "
                f"VRGA is enabled (disable VRGA there), or it was copied from one or loaded with "
                f"attn_implementation={self._base!r} (call model.set_attn_implementation('sdpa'), "
                "or 'eager', first)"
            )
        self._hooks: ForwardHooks | None = None
        self._finder, self._pictures = finder, pictures
        # Attributes of the model's instance: name -> what stood there (None: nothing), and ours.
        self._replaced: dict[str, tuple[Any, Any]] = {}

    def install(self) -> None:
        """Switch the language model's attention, add the hooks and wrap ``generate``."""
        model = self._model
        base = self._base if self._base in IMPLEMENTATIONS else self._fallback()
        try:
            self._switch(IMPLEMENTATIONS[base])
            if self._text_config._attn_implementation != IMPLEMENTATIONS[base]:
                raise ValueError(
                    f"model: wanted a language model whose attention can be replaced, got "
                    f"{type(model.get_decoder()).__name__}, which keeps {self._base!r}"
                )
            said = check_decoder(model.get_decoder(), self._text_config, IMPLEMENTATIONS[base])
            facts = find_facts(model, self._placeholders, self._finder, self._pictures)
            self._runtime.settings = facts.with_heads(self._runtime.settings)
            self._hooks = hooks = ForwardHooks(self._runtime, facts)
            stock = functools.partial(type(model).generate, model)
            original = model.__dict__.get("generate", stock)
            self._replace("generate", functools.partial(hooks.generate, original, model))
            for name in _CONTINUOUS_BATCHING:
                self._replace(name, functools.partial(_refuse_continuous_batching, name))
            if base != self._base:
                self._runtime.notice(f"the language model runs {base!r} instead of {self._base!r}")
            if unset := self._placeholders.unset:
                self._runtime.notice(
                    f"model.config.{unset} is None, so the model may leave image features out; "
                    f"set it to the image token's id"
                )
            for message in said:
                self._runtime.notice(message)
        except BaseException:  # an interrupt, too, leaves the model as it was
            self.remove()
            raise

    def remove(self) -> None:
        """Undo all of it; what was never done, or changed since by others, is left alone."""
        if self._hooks is not None:
            self._hooks.remove()
        own = self._model.__dict__
        for name, (before, ours) in self._replaced.items():
            if own.get(name) != ours:  # someone wrapped it since
                continue
            del own[name]
            if before is not None:
                own[name] = before
        if self._text_config._attn_implementation in IMPLEMENTATIONS.values():
            self._switch(self._base)

    def _replace(self, name: str, ours: Any) -> None:
        """Set a method on the instance, if the model has it."""
        if hasattr(self._model, name):
            self._replaced[name] = self._model.__dict__.get(name), ours
            self._model.__dict__[name] = ours

    def _fallback(self) -> str:
        """What replaces an implementation other than sdpa and eager: sdpa if it can."""
        capped = getattr(self._text_config, "attn_logit_softcapping", None) is not None
        able = getattr(self._model.get_decoder(), "_supports_sdpa", True)
        return "sdpa" if not capped and able else "eager"

    def _switch(self, implementation: str) -> None:
        config = self._model.config
        keys = [
            key for key in config.sub_configs if getattr(config, key, None) is self._text_config
        ]
        self._model.set_attn_implementation({keys[0] if keys else "": implementation})


def _refuse_cross_attention(model: Any, text_config: Any) -> None:
    encoded = model.config.is_encoder_decoder or getattr(text_config, "is_encoder_decoder", False)
    crossed = any(
        getattr(module, "is_cross_attention", False) for module in model.get_decoder().modules()
    )
    if encoded or crossed or getattr(text_config, "cross_attention_layers", None):
        raise ValueError(
            f"model: wanted image tokens among the keys of self-attention, got "
            f"{type(model).__name__}, which sees the image through cross-attention"
        )


def _refuse_continuous_batching(name: str, *args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(
        f"{name}: continuous batching is not supported while VRGA is enabled; "
        "use generate(), or disable() first"
    )
