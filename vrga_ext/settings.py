"""Settings of one call: what ``vrga=`` of ``generate`` and of a model call says, per sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vrga_ext.config import VRGAConfig
from vrga_ext.gate import Gate
from vrga_ext.guide import Guide

_WANTED = "True, False, None, a dictionary of thresholds, a VRGAConfig, a Guide, or a list of them"


@dataclass(frozen=True, eq=False)
class Settings:
    """How VRGA treats one sample of a prompt.

    Attributes
    ----------
    config : VRGAConfig
        Thresholds, the guide's gamma and suppress included.
    guide : Guide, optional
        Where the model should look; None: where VRGA finds.
    heads : tuple of (layer, head), optional
        Heads that are gated; None: the selected visual heads.
    applied : bool
        False leaves the sample as the model has it.

    Examples
    --------
    >>> Settings(VRGAConfig(gamma=1.0)).gate.focus_weight
    2.0
    """

    config: VRGAConfig
    guide: Guide | None = None
    heads: tuple[tuple[int, int], ...] | None = None
    applied: bool = True

    @property
    def gate(self) -> Gate:
        """The gate of the operations; one that changes nothing where VRGA is not applied."""
        return self.config.head_gate if self.applied else _UNCHANGED

    @property
    def is_identity(self) -> bool:
        """Whether the sample stays as the model has it."""
        return not self.applied or self.config.is_identity

    @property
    def without_guide(self) -> Settings:
        """The same for another prompt, in which a guide's places are others."""
        return self if self.guide is None else replace(self, guide=None)


_UNCHANGED = Gate("static", 1.0, 1.0)


def read_settings(value: Any, base: Settings) -> tuple[Settings, ...]:
    """Settings from what a caller passed as ``vrga``.

    Parameters
    ----------
    value
        None or True: ``base``. False: VRGA is not applied. A dictionary: fields of
        :class:`vrga_ext.VRGAConfig` that differ, and under ``"guide"`` those of a
        :class:`vrga_ext.Guide`. A VRGAConfig in place of the base's. A Guide. A list or tuple: one
        of these per sample.
    base
        The settings of the handle.

    Returns
    -------
    tuple of Settings
        One for all samples, or one per sample.

    Raises
    ------
    TypeError
        Another type, or an unknown field.
    ValueError
        A value is out of its range; an empty list.

    Examples
    --------
    >>> base = Settings(VRGAConfig())
    >>> [settings.config.gamma for settings in read_settings([{"gamma": 2.0}, None], base)]
    [2.0, 0.5]
    >>> read_settings({"gama": 2.0}, base)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    TypeError: vrga: gama: no such field of VRGAConfig; fields: ['gamma', ...
    """
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("vrga: wanted settings per sample, got an empty list")
        return tuple(_of_sample(one, base) for one in value)
    return (_of_sample(value, base),)


def per_sample(settings: Sequence[Settings], samples: int) -> tuple[Settings, ...]:
    """One setting per sample of a prompt.

    Raises
    ------
    ValueError
        There are several, and not one per sample.
    """
    if len(settings) == 1:
        return tuple(settings) * samples
    if len(settings) != samples:
        raise ValueError(
            f"vrga: wanted one setting, or one for each of {samples} samples, got {len(settings)}"
        )
    return tuple(settings)


def check_plain(value: Any) -> None:
    """Refuse settings of a ``GenerationConfig`` that are not plain JSON: it is printed and saved.

    Raises
    ------
    TypeError
        The value is, or holds, something else.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"generation_config.vrga: wanted plain JSON values, got {value!r} ({error}); pass "
            "objects as generate(vrga=...)"
        ) from error


def _of_sample(value: Any, base: Settings) -> Settings:
    if value is None or value is True:
        return base
    if value is False:
        return replace(base, applied=False, guide=None)
    if isinstance(value, VRGAConfig):
        return replace(base, config=value)
    if isinstance(value, Guide):
        return _guided(base, base.config, value)
    if not isinstance(value, Mapping):
        raise TypeError(f"vrga: wanted {_WANTED}, got {value!r}")
    fields = dict(value)
    guide = fields.pop("guide", None)
    try:
        config = base.config.replace(**fields)
        if guide is None:
            return replace(base, config=config)
        guide = guide if isinstance(guide, Guide) else Guide.from_plain(guide)
    except TypeError as error:
        raise TypeError(f"vrga: {error}") from error
    return _guided(base, config, guide)


def _guided(base: Settings, config: VRGAConfig, guide: Guide) -> Settings:
    heads = base.heads if guide.heads is None else guide.heads
    return replace(base, config=guide.configured(config), guide=guide, heads=heads)
