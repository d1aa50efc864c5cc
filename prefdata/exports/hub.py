"""Exports on the Hugging Face hub: one commit of the files that export wrote, and of no others.

The hub knows contents by their hashes: what an interrupted push has sent is not sent again. Shards of an earlier export
that are no longer there go in the same commit, so that a reader sees the old dataset or the new one.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from prefdata.errors import InputError, PrefdataError, UsageError

_NAME = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]{0,95}/)?\w[\w.-]{0,93}\w?(?<!\.git)", re.ASCII)


class HubDataset:
    """A dataset repository on the hub."""

    def __init__(self, name: str, *, public: bool = False) -> None:
        """Return the repository of that name, `owner/name` or `name`; nothing is sent.

        Raises:
            UsageError: the name is none, huggingface_hub is not installed, or nobody is logged in.
        """
        if importlib.util.find_spec("huggingface_hub") is None:
            raise UsageError("--push-to-hub needs huggingface_hub: pip install 'prefdata[datasets]'.")
        from huggingface_hub import get_token

        if not _NAME.fullmatch(name):
            raise UsageError(f"--push-to-hub {name!r} is no name of a dataset on the hub: give OWNER/NAME.")
        if not get_token():
            raise UsageError("--push-to-hub needs a token that may write: run `hf auth login`, or set HF_TOKEN.")
        self.name, self._private = name, not public

    def push(self, folder: Path, files: Sequence[str]) -> str:
        """Make the repository if it is not there, and send these files of `folder`; returns its address.

        A repository that is there stays private or public as it is.

        Raises:
            InputError: the hub does not let this token write there.
            PrefdataError: the hub cannot be reached, or refuses the files.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        inside = {str(PurePosixPath(file).parent) for file in files} - {"."}
        with _errors(self.name):
            address = api.create_repo(self.name, repo_type="dataset", private=self._private, exist_ok=True)
            api.upload_folder(
                repo_id=address.repo_id,
                repo_type="dataset",
                folder_path=folder,
                allow_patterns=[_literal(file) for file in files],
                delete_patterns=[f"{_literal(name)}/*" for name in sorted(inside)],
                commit_message="prefdata export",
            )
        return str(address)


def _literal(path: str) -> str:
    """Return a pattern that stands for this path alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whichever HTTP library this version of huggingface_hub uses
        raise _problem(name, error.__cause__ if type(error) is RuntimeError and error.__cause__ else error) from error


def _problem(name: str, error: BaseException) -> PrefdataError:
    from huggingface_hub import errors

    again = "The same command again sends what is missing."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError("HF_HUB_OFFLINE is set: unset it to push to the hub.")
    if not isinstance(error, errors.HfHubHTTPError):
        return PrefdataError(f"the hub cannot be reached for {name} ({type(error).__name__}: {error}). {again}")
    status = error.response.status_code
    said = f"{status}: {error.server_message or str(error).splitlines()[0]}"
    if status in (401, 403, 404):
        return InputError(f"the hub does not let this token write to {name} ({said}).")
    return PrefdataError(f"the hub did not take {name} ({said}). {again}")
