"""The handle that ``enable`` returns: what users of an enabled model read, set and call."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vrga_ext.config import VRGAConfig
from vrga_ext.integrations.transformers.install import Installation
from vrga_ext.integrations.transformers.observe.recorder import CaptureRecorder
from vrga_ext.integrations.transformers.runtime import Runtime
from vrga_ext.integrations.transformers.sequence.answer import RegionHook
from vrga_ext.integrations.transformers.sequence.prompt import declared_image_mask
from vrga_ext.prompts.pictures import PictureReader
from vrga_ext.prompts.placeholders import Placeholders
from vrga_ext.prompts.question import QuestionFinder, normalise_question_end
from vrga_ext.prompts.user_turns import finds_the_same
from vrga_ext.region import Region
from vrga_ext.settings import Settings

HANDLE_ATTRIBUTE = "_vrga_handle"
# Held while a model is changed.
CHANGING = threading.RLock()
# Public attributes of a handle that may be set.
_SETTABLE = ("question_end", "region_hook")


class VRGAHandle:
    """VRGA in one model, returned by :func:`vrga_ext.enable`; also a context manager.

    Attributes
    ----------
    regions : list of Region
        What was found for each sample of the last prompt that the calling thread has read, else of
        the last one that any thread has; empty before the first one, and after one that was read
        inside :meth:`pause`. :func:`vrga_ext.regions_of` tells those of a given answer.
    region_hook : callable (sample index, Region) -> Region, optional
        Called after the selection for each sample; the heads and tokens of the region it returns
        are used. For controls and ablations: ``dataclasses.replace(region, boosted=...)``.

    Examples
    --------
    >>> with vrga_ext.enable(model, gamma=1.0) as handle:  # doctest: +SKIP
    ...     model.generate(**inputs)
    ...     handle.regions[0].visual_heads
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        placeholders: Placeholders,
        finder: QuestionFinder,
        pictures: PictureReader,
        question_end: Any,
    ) -> None:
        self._model = model
        self._finder, self._placeholders = finder, placeholders
        self._runtime = Runtime(settings, normalise_question_end(question_end))
        self._installation = Installation(model, self._runtime, placeholders, finder, pictures)

    @property
    def config(self) -> VRGAConfig:
        """The thresholds in use."""
        return self._runtime.settings.config

    @property
    def regions(self) -> list[Region]:
        """What was found for each sample of this thread's last prompt, else of the last one."""
        return self._runtime.regions

    @property
    def installed(self) -> bool:
        """Whether VRGA is enabled, by this handle."""
        return self._model.__dict__.get(HANDLE_ATTRIBUTE) is self

    def is_of(self, model: Any) -> bool:
        """Whether VRGA is enabled by this handle in this model, and not in one it is a copy of."""
        return self.installed and self._model is model

    @property
    def paused(self) -> bool:
        """Whether a ``pause`` is on, in whichever thread."""
        return bool(self._runtime.pauses)

    @property
    def notices(self) -> tuple[str, ...]:
        """What was said so far about prompts that VRGA could not be applied to."""
        return tuple(self._runtime.noticed)

    @property
    def question_end(self) -> str | int | list[int]:
        """Where the question ends in the next prompts: see :func:`vrga_ext.enable`; may be set."""
        return self._runtime.question_end

    @question_end.setter
    def question_end(self, value: Any) -> None:
        self._runtime.question_end = normalise_question_end(value)

    @property
    def region_hook(self) -> RegionHook | None:
        """Called after the selection for each sample; may be set."""
        return self._runtime.region_hook

    @region_hook.setter
    def region_hook(self, hook: RegionHook | None) -> None:
        self._runtime.region_hook = hook

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
                del self._model.__dict__[HANDLE_ATTRIBUTE]
                self._installation.remove()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Run the model without VRGA inside a ``with`` block, in every thread.

        Every thread, so that a ``generate`` that is started in a thread of its own, as streamers
        need it, is paused as well; ``generate(..., vrga=False)`` is the way for one call. Prompts
        read inside are not analysed, so their answers are not boosted afterwards either, until the
        next prompt on the same cache.
        """
        self._runtime.pauses.append(None)
        try:
            yield
        finally:
            self._runtime.pauses.pop()

    @contextlib.contextmanager
    def image_mask(self, mask: Tensor) -> Iterator[None]:
        """Say where the image is in the prompts of a ``with`` block, in this thread.

        For prompts that come as ``inputs_embeds``, with the image already merged. Inside the
        block the mask stands for what the token ids would tell; decode steps do not need it.

        Parameters
        ----------
        mask : bool [B, S]
            Image tokens of the prompt: one sequence per sample, one value per embedding.

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
        token = declared_image_mask.set((self._runtime.key, _checked_image_mask(mask)))
        try:
            yield
        finally:
            declared_image_mask.reset(token)

    @contextlib.contextmanager
    def recording(self, recorder: CaptureRecorder) -> Iterator[None]:
        """Give the forward calls of a ``with`` block to a recorder: see :func:`vrga_ext.capture`.

        Raises
        ------
        ValueError
            Another one records them already.
        """
        if self._runtime.capture is not None:
            raise ValueError("model: wanted one capture at a time, got a second one inside another")
        self._runtime.capture = recorder
        try:
            yield
        finally:
            self._runtime.capture = None

    def __enter__(self) -> VRGAHandle:
        if not self.installed:
            raise ValueError("handle: wanted one that is enabled, got one after its disable()")
        return self

    def __exit__(self, *exception: object) -> None:
        self.disable()

    def install(self) -> None:
        """Change the model; if that fails, it is as it was."""
        self._installation.install()
        setattr(self._model, HANDLE_ATTRIBUTE, self)

    def check_same_prompts(self, processor: Any, question_end: Any, image_token_id: Any) -> None:
        """Refuse what would read prompts otherwise than the handle; None and "auto" leave it.

        Raises
        ------
        ValueError
            VRGA was enabled with another processor, question end or image token.
        """
        if processor is not None and not finds_the_same(self._finder, processor):
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


def _instead_of_setting(name: str) -> str:
    """What to do in place of setting an attribute of a handle."""
    if name in {field.name for field in dataclasses.fields(VRGAConfig)} | {"config"}:
        change = "config" if name == "config" else f"{name}=..."
        return f"thresholds are fixed: call disable(), then enable(model, {change})"
    if name in ("enabled", "installed", "paused"):
        return "use `with handle.pause():`, or handle.disable()"
    return "see help(vrga_ext.VRGAHandle)"


def _checked_image_mask(mask: Any) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: wanted a bool tensor [B, S], got {got}")
    if mask.dim() != 2:
        raise ValueError(f"mask: wanted a bool tensor [B, S], got shape {tuple(mask.shape)}")
    return mask.detach().cpu()
