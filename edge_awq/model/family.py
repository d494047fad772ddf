"""Model families: what config.json cannot say, as data in ``families/*.toml``."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.toml import load_toml

FOLDER = Path(__file__).parent / "families"

# The words a family file may use. Each names one implementation in decoder.py and one in export/graph.py.
WORDS = {
    "norm": ("rms",),
    "mlp": ("gated",),
    "position": ("rope",),
    "residual": ("sequential",),
}


@dataclass(frozen=True)
class Fold:
    """One AWQ fold group: ``source`` absorbs 1/s into its output channels, ``linears`` take s into their inputs."""

    source: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One model family, read from ``families/<name>.toml``.

    Attributes:
        model_types: the values of ``model_type`` in config.json that belong here.
        config: canonical configuration name -> key in config.json (dots reach into nested tables).
        names: canonical name -> module name in the checkpoint, outside the blocks.
        block: the same inside a block, with ``prefix`` holding ``{i}``.
        fold: the AWQ fold groups, in the order in which they are searched.
    """

    name: str
    model_types: tuple[str, ...]
    norm: str
    mlp: str
    position: str
    residual: str
    config: dict[str, str]
    names: dict[str, str]
    block: dict[str, str]
    fold: tuple[Fold, ...]

    def __post_init__(self) -> None:
        for field, words in WORDS.items():
            word = getattr(self, field)
            if word not in words:
                raise EdgeAwqError(
                    f"family '{self.name}': {field} = '{word}' is not known",
                    hint=f"use one of: {', '.join(words)}",
                )

    @property
    def linears(self) -> tuple[str, ...]:
        """Canonical names of the linear layers in a block, in the order of the forward pass."""
        return tuple(name for name in self.block if name != "prefix" and not name.endswith("_norm"))

    @property
    def norms(self) -> tuple[str, ...]:
        """Canonical names of the norms in a block."""
        return tuple(name for name in self.block if name.endswith("_norm"))


def read_family(path: Path) -> Family:
    """Read one family file; an unknown or missing key is an error that names it."""
    table: dict[str, Any] = load_toml(path)
    known = {field.name for field in fields(Family)}
    if wrong := sorted(known ^ set(table)):
        raise EdgeAwqError(
            f"{path.name}: keys {', '.join(wrong)} are missing or not known",
            hint=f"a family file has exactly: {', '.join(sorted(known))}",
        )
    table["model_types"] = tuple(table["model_types"])
    table["fold"] = tuple(Fold(fold["source"], tuple(fold["linears"])) for fold in table["fold"])
    return Family(**table)


@functools.cache
def load_families() -> tuple[Family, ...]:
    """All families that ship with edge-awq, by file name."""
    return tuple(read_family(path) for path in sorted(FOLDER.glob("*.toml")))


def find_family(model_type: str) -> Family:
    """The family that ``model_type`` of a config.json belongs to.

    Raises:
        EdgeAwqError: no family lists it; the hint lists those that are known.
    """
    families = load_families()
    for family in families:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(kind for family in families for kind in family.model_types))
    raise EdgeAwqError(
        f"model type '{model_type}' belongs to no known family",
        hint=f"known model types: {known}; a new family is one TOML file in edge_awq/model/families",
    )
