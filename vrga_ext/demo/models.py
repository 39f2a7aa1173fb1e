"""Models by folder or by their id on the hub: what can be said of them without loading one."""

from __future__ import annotations

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"  # the demo's own


def check_folder_of_model(argument: str, where: str | Path) -> None:
    """Refuse a folder in which no model was saved.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no ``config.json`` in it.
    """
    if not (Path(where) / "config.json").is_file():
        raise FileNotFoundError(f"{argument}: wanted a folder of a saved model, got {where}")


def check_checkpoint(argument: str, where: str) -> None:
    """Refuse what is neither a folder of a saved model nor could be an id of the hub.

    Raises
    ------
    FileNotFoundError
        A path, and no model there.
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
