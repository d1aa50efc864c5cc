"""Models of the Hugging Face hub: their revision and config, and what to do where they cannot be had."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from prefdata.errors import ModelError
from prefdata.models.identity import json_object


def hub_config(name: str) -> tuple[str, dict[str, Any]]:
    """Return the revision and the config.json of a hub model, from the cache where it holds them.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelError(
            f"there is no folder {name} here, and huggingface_hub is not installed. "
            "Give a folder, or pip install 'prefdata[models]'."
        )
    try:
        path = Path(_cached_config(name) or _fetched_config(name))
    except Exception as error:
        raise hub_error(name, error) from error
    return path.parent.name, json_object(path)  # …/snapshots/<commit>/config.json


def _cached_config(name: str) -> str | None:
    # The cache comes first: the same command again takes the same revision, with or without a network.
    from huggingface_hub import errors, hf_hub_download

    try:
        return str(hf_hub_download(name, "config.json", local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None


def _fetched_config(name: str) -> str:
    from huggingface_hub import HfApi, hf_hub_download

    # model_info fails at once without a network, where a download would try again for half a minute.
    return str(hf_hub_download(name, "config.json", revision=HfApi().model_info(name, timeout=10).sha))


def hub_error(name: str, error: Exception) -> ModelError:
    """Return the message for what the hub's client raised."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        problem = "the Hugging Face hub asks for its terms to be accepted. Accept them there and log in (hf auth login)"
    elif isinstance(error, errors.RepositoryNotFoundError):
        problem = "the Hugging Face hub has no such model (or it is private). Check the name"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        problem = "the Hugging Face hub's model of that name has no config.json. Choose another"
    else:
        problem = (
            "the Hugging Face hub cannot be reached and its local cache does not hold it. Give a folder, or connect"
        )
    return ModelError(f"there is no folder {name} here, and {problem}.")
