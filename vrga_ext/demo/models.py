"""Checks of a model's folder or id on the hub, without loading the model."""

from __future__ import annotations

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"  # the demo's own


def check_folder_of_model(argument: str, where: str | Path) -> None:
    """Check that a folder holds a saved model.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no ``config.json`` in it.
    """
    if not (Path(where) / "config.json").is_file():
        raise FileNotFoundError(f"{argument}: wanted a folder of a saved model, got {where}")


def check_checkpoint(argument: str, where: str) -> None:
    """Check that a model is a folder of a saved model or has the form of an id of the hub.

    Raises
    ------
    FileNotFoundError
        It is neither.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not Path(where).exists():
        try:
            validate_repo_id(where)
        except HFValidationError:
            raise FileNotFoundError(
                f"{argument}: wanted a folder of a saved model or an id of the hub, got {where}"
            ) from None
    else:
        check_folder_of_model(argument, where)
