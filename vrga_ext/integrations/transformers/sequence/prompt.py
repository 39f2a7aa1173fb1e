"""One prompt as the hooks see it: tokens, padding, image tokens, and how far its call is."""

from __future__ import annotations

import contextlib
import contextvars
import enum
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vrga_ext.prompts import images
from vrga_ext.prompts.guided import Places
from vrga_ext.prompts.images import GRID_ARGUMENTS
from vrga_ext.prompts.placeholders import POSITION_ARGUMENTS, positions_told
from vrga_ext.settings import Settings, per_sample

UNKNOWN_TOKEN = -1
# Arguments of a model whose tensors are not images, though they look like it.
_NO_PIXELS = frozenset({"attention_mask", "position_ids", "cache_position", "labels"})


class Stage(enum.Enum):
    """How far the call of ``generate``, or of the model in a manual loop, is with its prompt."""

    READING = enum.auto()  # some of its tokens have not been read
    ANSWERING = enum.auto()  # all have; the call goes on
    OVER = enum.auto()  # the call has returned, or was interrupted


class Prompt:
    """Tokens of one prompt, on the CPU; it lives for one call of ``generate`` or of ``forward``.

    Parameters
    ----------
    owner
        Key of the handle that the prompt belongs to.
    given
        Arguments of that call. ``input_ids`` [B, S] are the prompt's tokens, or the last S of them
        if the rest is in the cache already; so are ``inputs_embeds`` [B, S, D] and the processor's
        ``mm_token_type_ids`` [B, S], 0 for text. ``attention_mask`` [B, N] is 0 for padding.
    settings
        One for all samples, or one per sample.
    outer
        The prompt of another call that this one interrupts.
    managed
        Whether ``generate`` reads it, so that every later forward call is a decode step.

    Attributes
    ----------
    settings : tuple of Settings
        Of each sample.
    is_guided : bool
        Whether a sample has a guide.
    places : tuple of Places, optional each
        Where the guide of each sample lies; empty without a guide.
    stage : Stage
        How far its call is.
    ids : int64 [B, S], optional
        The tokens; all unknown where only embeddings and an image mask were given. None where the
        place of the image is not known.
    image : bool [B, S], optional
        Image tokens, if ``handle.image_mask`` or the call itself says where they are. Without it
        the ids tell.
    token_types : [B, S], optional
        ``mm_token_type_ids``.
    grids : dict from type to int64 [images, 3]
        Frames, rows and columns of patches of each image.
    mask : bool [B, N], optional
        False is padding.
    pixels : bool
        Whether the call came with pictures, their features, or embeddings.
    length : int, optional
        Positions of the cache at its end, if known beforehand.
    returned : int
        Tokens of the prompt that ``generate`` returns before those of the answer.
    call_ids : int64 [B, q], optional
        Tokens of the latest forward call, for ``capture``: the decoder is given embeddings.

    Raises
    ------
    ValueError
        The declared image mask does not fit the tokens, or the settings the samples.
    """

    def __init__(
        self,
        owner: str,
        given: Mapping[str, Any],
        settings: tuple[Settings, ...],
        outer: Prompt | None = None,
        managed: bool = False,
    ) -> None:
        self.owner, self.outer, self.managed = owner, outer, managed
        self.stage = Stage.READING
        self.call_ids: Tensor | None = None
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        self.pixels = _has_pixels(given)
        self.returned = 0 if ids is None else ids.shape[1]
        if embeds is not None and (ids is None or ids.shape != embeds.shape[:2]):
            ids = None  # generate() may be given other tokens than are embedded, or none
        self.ids: Tensor | None = None if ids is None else ids.detach().cpu()
        types = given.get("mm_token_type_ids")
        self.token_types = None if types is None else types.detach().cpu()
        self.grids = {
            kind: given[name].detach().cpu()
            for kind, name in GRID_ARGUMENTS.items()
            if given.get(name) is not None
        }
        self.mask: Tensor | None = None
        self.set_mask(given.get("attention_mask"))
        self.image: Tensor | None = None
        self.length: int | None = None
        tokens = embeds if embeds is not None else self.ids
        self.settings = settings
        self.is_guided = [own.guide for own in settings] != [None] * len(settings)
        self.places: tuple[Places | None, ...] = ()
        if tokens is not None:
            self.settings = per_sample(settings, tokens.shape[0])
            self._declare(given, tuple(tokens.shape[:2]))
            if managed:
                self.length = (tokens if self.mask is None else self.mask).shape[1]

    @property
    def nested(self) -> bool:
        """Whether it interrupts a prompt of its own model, as guidance's second prompt does."""
        return self.outer is not None and self.outer.owner == self.owner

    def read_call(self, given: Mapping[str, Any]) -> None:
        """Take what one forward call over its tokens tells."""
        self.set_mask(given.get("attention_mask"))
        self.call_ids = given.get("input_ids")

    def _declare(self, given: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        """Take the image mask of the ``with`` block that the call is in, or the call's own."""
        declared = declared_image_mask.get()
        if declared is not None and declared[0] == self.owner and not self.nested:
            self.image = declared[1]
        elif not POSITION_ARGUMENTS.isdisjoint(given):
            self.image = positions_told(given, shape)
        if self.image is None:
            return
        if self.image.shape != shape:
            raise ValueError(
                f"image_mask: wanted one value per prompt token, shape {shape}, "
                f"got {tuple(self.image.shape)}"
            )
        if self.ids is None:
            self.ids = torch.full(shape, UNKNOWN_TOKEN, device="cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> Prompt:
        return self  # a copy of a cache belongs to the same run

    def set_mask(self, mask: Any) -> None:
        """Take the padding of an attention mask, [B, N] or [B, H, S, N].

        A four-dimensional one tells it in a manual loop, where the call is the prompt: what
        no query attends to is padding.
        """
        if self.mask is not None or not isinstance(mask, Tensor):
            return
        if mask.dim() == 2:
            self.mask = mask.detach().cpu().bool()
        elif mask.dim() == 4 and not self.managed:
            additive = mask.is_floating_point()
            attended = mask > torch.finfo(mask.dtype).min if additive else mask.bool()
            self.mask = attended.detach().any(dim=2).any(dim=1).cpu()

    def image_mask(
        self,
        placeholder_ids: tuple[int, ...],
        past: int,
        length: int,
        before: Tensor | None,
        batch: int | None = None,
    ) -> Tensor:
        """Image tokens of a prompt of ``length`` positions, ``past`` of them cached, bool [B, N].

        Parameters
        ----------
        placeholder_ids
            Ids of image and video tokens.
        past, length
            Positions of the cache before the prompt, and once it has been read.
        before : bool [B, M], optional
            Image tokens of the prompts that the cache held before.
        batch
            B, where each sample of the prompt has several sequences.
        """
        assert self.ids is not None
        samples = self.ids.shape[0]
        batch = samples if batch is None else batch
        given = images.image_mask(self.ids, placeholder_ids) if self.image is None else self.image
        image = torch.zeros(batch, length, dtype=torch.bool)
        known = min(self.ids.shape[1], length)  # tokens of the prompt that are known, the last ones
        image[:, length - known :] = given[:, -known:].repeat_interleave(batch // samples, 0)
        if before is not None and before.shape[0] == batch:
            kept = min(past, before.shape[1])
            image[:, :past] = False  # what was generated since is never an image token
            image[:, :kept] = before[:, :kept]
        return image & self.padding_mask(batch, length)

    def padding_mask(self, batch: int, length: int) -> Tensor:
        """Tokens of the prompt as bool [B, N]; what no mask covers is no padding."""
        mask = torch.ones(batch, length, dtype=torch.bool, device="cpu")
        if self.mask is not None:
            given = self.mask[:, :length]
            mask[:, : given.shape[1]] = given.repeat_interleave(batch // given.shape[0], 0)
        return mask


# Set inside ``VRGAHandle.image_mask``: the handle's key and the mask, bool [B, S].
declared_image_mask: contextvars.ContextVar[tuple[str, Tensor] | None] = contextvars.ContextVar(
    "vrga_image_mask", default=None
)
# The innermost prompt that a call of ``generate`` or ``forward`` in this thread is about.
current_prompt: contextvars.ContextVar[Prompt | None] = contextvars.ContextVar(
    "vrga_prompt", default=None
)


def leave_interrupted(owner: str) -> None:
    """End prompts whose forward call an interrupt ended: no hook runs after one.

    To be called where no forward call of this handle's model can be under way.
    """
    prompt = current = current_prompt.get()
    while prompt is not None and prompt.owner == owner and not prompt.managed:
        prompt.stage = Stage.OVER
        prompt = prompt.outer
    if prompt is not current:
        current_prompt.set(prompt)


def prompt_being_read(owner: str) -> Prompt | None:
    """The current prompt, if it is of this handle and has not been read to its end."""
    prompt = current_prompt.get()
    reading = prompt is not None and prompt.owner == owner and prompt.stage is Stage.READING
    return prompt if reading else None


def enter_forward(owner: str, given: Mapping[str, Any], settings: tuple[Settings, ...]) -> Prompt:
    """Make the call of a manual loop, which is the prompt, the current one."""
    prompt = Prompt(owner, given, settings, outer=current_prompt.get())
    current_prompt.set(prompt)
    return prompt


def leave_forward(owner: str) -> None:
    """End the prompt of a manual loop's forward call, which has returned or raised."""
    prompt = current_prompt.get()
    if prompt is not None and prompt.owner == owner and not prompt.managed:
        prompt.stage = Stage.OVER
        current_prompt.set(prompt.outer)


@contextlib.contextmanager
def generate_prompt(
    owner: str, args: tuple[Any, ...], kwargs: dict[str, Any], settings: tuple[Settings, ...]
) -> Iterator[Prompt]:
    """Make the prompt of a call of ``generate`` the current one."""
    ids = args[0] if args else None
    for name in ("inputs", "input_ids"):
        ids = kwargs.get(name) if ids is None else ids
    leave_interrupted(owner)
    outer = current_prompt.get()
    prompt = Prompt(owner, kwargs | {"input_ids": ids}, settings, outer=outer, managed=True)
    token = current_prompt.set(prompt)
    try:
        yield prompt
    finally:
        prompt.stage = Stage.OVER
        current_prompt.reset(token)


def _has_pixels(given: Mapping[str, Any]) -> bool:
    """Whether a call's arguments hold pictures, their features, or embeddings."""
    for name, value in given.items():
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if name in _NO_PIXELS or not isinstance(tensor, Tensor):
                continue
            if tensor.dim() > 2 or (tensor.dim() == 2 and tensor.is_floating_point()):
                return True
    return False
