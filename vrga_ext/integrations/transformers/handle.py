"""Puts VRGA into one model and takes it out again: the handle that ``enable`` returns."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import uuid
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vrga_ext.config import VRGAConfig
from vrga_ext.integrations.transformers.call.attention import IMPLEMENTATIONS
from vrga_ext.integrations.transformers.call.hooks import ForwardHooks
from vrga_ext.integrations.transformers.model.layers import check_decoder
from vrga_ext.integrations.transformers.observe.recorder import Recorder
from vrga_ext.integrations.transformers.sequence.prompt import declared_image_mask, generate_prompt
from vrga_ext.integrations.transformers.sequence.state import RegionHook
from vrga_ext.prompts.placeholders import Placeholders
from vrga_ext.prompts.question import QuestionFinder, normalise_question_end
from vrga_ext.region import Region, Regions

HANDLE_ATTRIBUTE = "_vrga_handle"
# Held while a model is changed.
CHANGING = threading.RLock()
# Entries of continuous batching, which builds no mask for an attention function it does not know.
_CONTINUOUS_BATCHING = ("generate_batch", "init_continuous_batching")


# Public attributes of a handle that may be set.
_SETTABLE = ("question_end", "region_hook", "recorders")


class VRGAWarning(UserWarning):
    """VRGA cannot be applied as asked; the model runs as it would without it."""


class VRGAHandle:
    """VRGA in one model, returned by :func:`vrga_ext.enable`; also a context manager.

    Attributes
    ----------
    regions : list of Region
        What was found for each sample of the last prompt; empty before the first one, and after
        one that was read inside :meth:`pause`.
    region_hook : callable (sample index, Region) -> Region, optional
        Called after the selection for each sample; the heads and tokens of the region it returns
        are used. For controls and ablations: ``dataclasses.replace(region, boosted=...)``.
    recorders : list of Recorder
        What watches the forward calls: see ``observe/recorder.py``.

    Examples
    --------
    >>> with vrga_ext.enable(model, gamma=1.0) as handle:  # doctest: +SKIP
    ...     model.generate(**inputs)
    ...     handle.regions[0].visual_heads
    """

    def __init__(
        self,
        model: Any,
        config: VRGAConfig,
        placeholders: Placeholders,
        finder: QuestionFinder,
        question_end: Any,
    ) -> None:
        self._regions = Regions()
        self.region_hook: RegionHook | None = None
        self.question_end = question_end
        self._model = model
        self._config = config
        # Survives copies and pickles of the model; a reference would copy the model.
        self._key = uuid.uuid4().hex
        self._pauses: list[None] = []  # its append and pop are atomic, a counter's are not
        self._noticed: dict[str, None] = {}  # in order
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
        self._finder = finder
        self._placeholders = placeholders
        self._forward = ForwardHooks(self, model, placeholders, finder)
        self.recorders: list[Recorder] = []
        # Attributes of the model's instance: name -> what stood there (None: nothing), and ours.
        self._replaced: dict[str, tuple[Any, Any]] = {}

    # ---- public ------------------------------------------------------------------------------

    @property
    def config(self) -> VRGAConfig:
        """The thresholds in use."""
        return self._config

    @property
    def regions(self) -> list[Region]:
        """What was found for each sample of the last prompt."""
        return self._regions

    @property
    def installed(self) -> bool:
        """Whether VRGA is enabled, by this handle."""
        return self._model.__dict__.get(HANDLE_ATTRIBUTE) is self

    @property
    def paused(self) -> bool:
        """Whether a ``pause`` is on, in whichever thread."""
        return bool(self._pauses)

    @property
    def notices(self) -> tuple[str, ...]:
        """What was said so far about prompts that VRGA could not be applied to."""
        return tuple(self._noticed)

    @property
    def question_end(self) -> str | int | list[int]:
        """Where the question ends in the next prompts: see :func:`vrga_ext.enable`; may be set."""
        return self._question_end

    @question_end.setter
    def question_end(self, value: Any) -> None:
        self._question_end = normalise_question_end(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in _SETTABLE:
            raise AttributeError(
                f"handle.{name}: wanted one of {', '.join(_SETTABLE)}, the attributes that can be "
                f"set; {_instead_of_setting(name)}"
            )
        super().__setattr__(name, value)

    def disable(self) -> None:
        """Restore the model, bit for bit; calling it again does nothing."""
        with CHANGING:
            if self.installed:
                self._remove()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Run the model without VRGA inside a ``with`` block, in every thread.

        Every thread, so that a ``generate`` that is started in a thread of its own, as streamers
        need it, is paused as well. Prompts read inside are not analysed, so their answers are not
        boosted afterwards either, until the next prompt on the same cache.
        """
        self._pauses.append(None)
        try:
            yield
        finally:
            self._pauses.pop()

    @contextlib.contextmanager
    def image_mask(self, mask: Tensor) -> Iterator[None]:
        """Say where the image is in the prompts of a ``with`` block, in this thread.

        For prompts that come as ``inputs_embeds``, with the image already merged. Inside the
        block the mask stands for what the token ids would tell; decode steps do not need it.

        Parameters
        ----------
        mask : bool [B, S]
            Image tokens of the prompt: one row per sample, one value per embedding.

        Raises
        ------
        TypeError
            ``mask`` is not a bool tensor.
        ValueError
            It has not two dimensions; later, from the model: it does not fit a prompt.

        Examples
        --------
        >>> with handle.image_mask(input_ids == model.config.image_token_id):  # doctest: +SKIP
        ...     model.generate(inputs_embeds=embeddings, attention_mask=attention_mask)
        """
        token = declared_image_mask.set((self._key, _checked_image_mask(mask)))
        try:
            yield
        finally:
            declared_image_mask.reset(token)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is neither paused nor watched: both end with a block."""
        return self.__dict__ | {"_pauses": [], "recorders": []}

    def __enter__(self) -> VRGAHandle:
        if not self.installed:
            raise ValueError("handle: wanted one that is enabled, got one after its disable()")
        return self

    def __exit__(self, *exception: object) -> None:
        self.disable()

    def check_same_prompts(self, processor: Any, question_end: Any, image_token_id: Any) -> None:
        """Refuse what would read prompts otherwise than the handle; None and "auto" leave it.

        Raises
        ------
        ValueError
            VRGA was enabled with another processor, question end or image token.
        """
        if processor is not None and not self._finder.agrees_with(processor):
            raise ValueError(
                "processor: wanted the one that VRGA is enabled with, or none, got another; "
                "pass it to enable()"
            )
        wanted = normalise_question_end(question_end)
        if wanted not in ("auto", self.question_end):
            raise ValueError(
                f"question_end: wanted that of the handle, {self.question_end!r}, or 'auto', got "
                f"{wanted!r}; set handle.question_end"
            )
        if image_token_id is not None:
            several = isinstance(image_token_id, Iterable)
            given = set(image_token_id if several else [image_token_id])
            if not given <= set(self._placeholders.ids):
                raise ValueError(
                    f"image_token_id: wanted ids among {list(self._placeholders.ids)}, which VRGA "
                    f"is enabled with, got {sorted(given)}; pass it to enable()"
                )

    # ---- into the model and out of it --------------------------------------------------------

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
            self._forward.add()
            self._replace("generate", self._wrapped_generate)
            for name in _CONTINUOUS_BATCHING:
                self._replace(name, functools.partial(_refuse_continuous_batching, name))
            setattr(model, HANDLE_ATTRIBUTE, self)
            if base != self._base:
                self._notice(f"the language model runs {base!r} instead of {self._base!r}")
            if unset := self._placeholders.unset:
                self._notice(
                    f"model.config.{unset} is None, so the model may leave image features out; "
                    f"set it to the image token's id"
                )
            for message in said:
                self._notice(message)
        except BaseException:  # an interrupt, too, leaves the model as it was
            self._remove()
            raise

    def _remove(self) -> None:
        self._forward.remove()
        self.leave(self._model)
        if self._text_config._attn_implementation in IMPLEMENTATIONS.values():
            self._switch(self._base)

    def leave(self, model: Any) -> None:
        """Take the handle's attributes out of its model, or of a shallow copy, which has them."""
        own = model.__dict__
        if own.get(HANDLE_ATTRIBUTE) is self:
            del own[HANDLE_ATTRIBUTE]
        for name, (before, ours) in self._replaced.items():
            if own.get(name) != ours:  # someone wrapped it since
                continue
            del own[name]
            if before is not None:
                own[name] = before

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

    def _wrapped_generate(self, *args: Any, **kwargs: Any) -> Any:
        """``generate`` that tells the hooks where the prompt ends."""
        before, _ = self._replaced["generate"]
        original = before or functools.partial(type(self._model).generate, self._model)
        if not self.installed:  # someone kept the method
            return original(*args, **kwargs)
        with generate_prompt(self._key, args, kwargs) as prompt:
            output = original(*args, **kwargs)
        self._forward.tell_answer(prompt, kwargs, output)
        return output

    @torch.compiler.assume_constant_result  # said while a call is compiled, not in its graph
    def _notice(self, message: str) -> None:
        if message not in self._noticed:
            self._noticed[message] = None
            warnings.warn(message, VRGAWarning, stacklevel=2)


def _instead_of_setting(name: str) -> str:
    """What to do in place of setting an attribute of a handle."""
    if name in {field.name for field in dataclasses.fields(VRGAConfig)} | {"config"}:
        change = "config" if name == "config" else f"{name}=..."
        return f"thresholds are fixed: call disable(), then enable(model, {change})"
    if name in ("enabled", "installed", "paused"):
        return "use `with handle.pause():`, or handle.disable()"
    return "see help(vrga_ext.VRGAHandle)"


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


def _checked_image_mask(mask: Any) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: wanted a bool tensor [B, S], got {got}")
    if mask.dim() != 2:
        raise ValueError(f"mask: wanted a bool tensor [B, S], got shape {tuple(mask.shape)}")
    return mask.detach().cpu()
