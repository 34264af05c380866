"""The model hub: what of it is on this machine, whether the rest can be had, and fetching it.

`huggingface_hub` does the work (its cache, its token, its resuming downloads). This module asks the
questions that decide a long download *before* it starts, and says what to do when the answer is no.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import auth_check, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
"""Of a model's repository: configuration, tokenizer and weights; no pickles."""


class HubError(RuntimeError):
    """Something on the hub cannot be had; the message says what to do."""


def cache() -> Path:
    """Where `huggingface_hub` keeps what it fetched (``HF_HOME`` moves it)."""
    return Path(constants.HF_HUB_CACHE)


def unreachable() -> str | None:
    """Why the hub cannot be reached; None if it can."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5)
    except urllib.error.HTTPError:
        return None  # it answered
    except Exception as error:  # whatever a network can do wrong
        return str(getattr(error, "reason", None) or first_line(error))
    return None


def first_line(error: Exception) -> str:
    """An error's kind, and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def has_file(repo: str, name: str) -> bool:
    """Whether a file of a repository is on this machine."""
    return isinstance(try_to_load_from_cache(repo, name), str)


def local_model(repo: str) -> Path | None:
    """The folder of a model that is on this machine, every file of its weights with it; None if it
    is not.

    Raises:
        HubError: ``repo`` cannot be a repository's name.
    """
    try:
        folder = Path(snapshot_download(repo, allow_patterns=MODEL_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise HubError(f"{repo!r} is no name of a repository there.") from error
    wanted = {"config.json", "model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text())["weight_map"].values()
        wanted = {"config.json", *shards}
    is_whole = all((folder / name).is_file() for name in wanted)
    return folder if is_whole else None


def require(repo: str, *, gated: bool = False) -> None:
    """Check that a repository can be fetched from; fetches nothing.

    Raises:
        HubError: no connection, no such repository, or a licence that has not been accepted.
    """
    why = unreachable()
    if why is not None:
        raise HubError(
            f"{repo} is not on this machine, and the model hub cannot be reached: {why}. Connect, "
            f"or fetch it on another machine (hf download {repo}) and copy that machine's "
            f"{cache()} to this one's. The lab 'smollm2' needs no hub."
        )
    try:
        auth_check(repo)
    except GatedRepoError as error:
        raise HubError(
            f"{repo} is gated: (1) accept its licence at {constants.ENDPOINT}/{repo}; (2) make a "
            f"token at {constants.ENDPOINT}/settings/tokens; (3) log in with it: `hf auth login` "
            "in a terminal, or set HF_TOKEN (in Colab: the key symbol on the left, a secret named "
            "HF_TOKEN)."
        ) from error
    except RepositoryNotFoundError as error:
        message = f"the hub has no repository {repo!r} that you may see."
        if gated:
            message += " If it is gated or private, log in first: `hf auth login`, or set HF_TOKEN."
        raise HubError(message) from error
    except Exception as error:
        raise HubError(
            f"the hub does not answer for {repo}: {first_line(error)}. Try again later."
        ) from error


def model_folder(repo: str, *, gated: bool = False) -> Path:
    """The folder of a model, fetched if need be, with a progress bar; a download that broke off
    goes on where it stopped.

    Raises:
        HubError: it cannot be had.
    """
    folder = local_model(repo)
    if folder is None:
        require(repo, gated=gated)
        try:
            folder = Path(snapshot_download(repo, allow_patterns=MODEL_FILES))
        except Exception as error:
            raise HubError(
                f"fetching {repo} broke off: {first_line(error)}. Run this again: it goes on where "
                "it stopped."
            ) from error
    return folder
