"""Where a model comes from: a local folder, or a hub id that is fetched into Hugging Face's own cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_awq.errors import EdgeAwqError

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine; ``revision`` is the hub's commit, None for a plain folder."""

    name: str
    folder: Path
    revision: str | None


def resolve_source(model: str) -> Source:
    """Find ``model``: a folder that exists, else a hub id ``org/name`` or ``org/name@revision``, downloaded if needed.

    Raises:
        EdgeAwqError: there is no such folder and no such model, or the hub cannot be reached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Source(folder.resolve().name, folder, None)
    match = _HUB_ID.fullmatch(model)
    if folder.is_file() or match is None:
        raise EdgeAwqError(f"model '{model}': no such folder",
                           hint="give the folder of a Hugging Face checkpoint, or a hub id such as org/name")
    fetched = _fetch(match["repo"], match["revision"])
    return Source(match["repo"], fetched, fetched.name)


def _fetch(repo: str, revision: str | None) -> Path:
    """Download, or find in the cache, config, tokenizer and weights; the folder's name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[*_SMALL_FILES, "model*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repo, revision=revision, allow_patterns=["pytorch_model*.bin"])
    except LocalEntryNotFoundError as error:
        raise EdgeAwqError(f"model '{repo}': no such folder, not in the cache, and the hub cannot be reached",
                           hint="check the name and the network, or give a local folder") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise EdgeAwqError(f"model '{repo}': the hub does not give it ({_first_line(error)})",
                           hint="check the name; for a gated model run 'hf auth login' first") from error
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
