"""The settings that a call of ``generate`` comes with."""

from __future__ import annotations

from typing import Any

from vrga_ext.settings import check_plain


def settings_of_generate(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take ``vrga`` out of the arguments of ``generate``, or read it from the generation config.

    Parameters
    ----------
    model
        Whose own generation config counts where none is passed.
    args, kwargs
        Of the call; ``vrga`` is removed from ``kwargs``.

    Returns
    -------
    Any
        What :func:`vrga_ext.settings.read_settings` takes; None where nothing is said.

    Raises
    ------
    TypeError
        A generation config holds something else than plain JSON values.
    """
    if "vrga" in kwargs:
        return kwargs.pop("vrga")
    config = args[1] if len(args) > 1 else kwargs.get("generation_config")
    if config is None:
        config = getattr(model, "generation_config", None)
    value = getattr(config, "vrga", None)
    check_plain(value)
    return value
