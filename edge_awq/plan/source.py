"""MODEL of ``edge-awq plan``: a bundle, a checkpoint's folder, an exact shape by name, or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_awq.bundle import MANIFEST, Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.plan.counts import Counts, counts_in, counts_of_shape
from edge_awq.plan.sizes import Sizes, sizes_of, sizes_of_bundle
from edge_awq.shapes import find_shape, shape_names
from edge_awq.target import QuantSpec


@dataclass(frozen=True)
class Subject:
    """What is planned for: a bundle that exists, or a model that could be built.

    Attributes:
        shape: the name in shapes.toml, None for anything else.
        precision: the bundle's; None where it is still to be chosen.
    """

    name: str
    counts: Counts | None = None
    bundle: Bundle | None = None
    shape: str | None = None

    @property
    def precision(self) -> str | None:
        return self.bundle.manifest.precision if self.bundle else None

    def sizes(self, precision: str, quant: QuantSpec, context: int) -> Sizes:
        """Sizes in one precision; a bundle has only its own, whatever is asked for."""
        if self.bundle is not None:
            return sizes_of_bundle(self.bundle)
        return sizes_of(self.counts, precision, quant, context)


def find_subject(model: str) -> Subject:
    """Find ``model``; nothing but a config.json is ever fetched.

    Raises:
        EdgeAwqError: there is no such model, or its family is not known.
    """
    path = Path(model).expanduser()
    if (path / MANIFEST).is_file():
        return Subject(path.name, bundle=Bundle.open(path, verify=False))
    if path.is_dir():
        return Subject(path.resolve().name, counts_in(path))
    if model in shape_names():
        return Subject(model, counts_of_shape(find_shape(model)), shape=model)
    if model.count("/") != 1 or path.exists():
        raise EdgeAwqError(f"model '{model}': no such folder, bundle or shape",
                           hint=f"give a folder, a hub id such as org/name, or one of: {', '.join(shape_names())}")
    return Subject(model, counts_in(_fetch_config(model)))


def _fetch_config(model: str) -> Path:
    """Download, or find in the cache, the config.json of ``org/name`` or ``org/name@revision``; returns its folder."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = model.partition("@")
    try:
        return Path(hf_hub_download(repo, "config.json", revision=revision or None)).parent
    except LocalEntryNotFoundError as error:
        raise EdgeAwqError(f"model '{model}': no such folder, not in the cache, and the hub cannot be reached",
                           hint="check the name and the network, or give a local folder") from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise EdgeAwqError(f"model '{model}': the hub does not give its config.json ({reason})",
                           hint="check the name; for a gated model run 'hf auth login' first") from error
