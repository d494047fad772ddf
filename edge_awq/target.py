"""Targets: what a bundle is built for, read from ``profiles/*.toml``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.toml import load_toml


@dataclass(frozen=True)
class Limits:
    """max_context: tokens in the KV cache; prefill_chunk: prompt tokens per pass."""

    max_context: int
    prefill_chunk: int


@dataclass(frozen=True)
class QuantSpec:
    """How weights are stored.

    Attributes:
        group_size: weights that share a scale along K; 64 is used where K does not divide by 128.
        symmetric: all zero points are 8.
        head_bits: 4, 8 or 16 for the output head.
    """

    group_size: int
    symmetric: bool
    head_bits: int

    def __post_init__(self) -> None:
        for name, choices in (("group_size", (128, 64)), ("head_bits", (4, 8, 16))):
            if getattr(self, name) not in choices:
                raise EdgeAwqError(f"{name} = {getattr(self, name)!r} is not possible",
                                   hint=f"use one of: {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class Target:
    """One target profile; ``kind`` names the runtime that compiles and runs its bundles."""

    name: str
    description: str
    kind: str
    limits: Limits
    quant: QuantSpec


def profile_folder() -> Path:
    """Where the profiles lie: in the installed package, or in ``profiles/`` of an editable checkout."""
    return Path(str(resources.files("edge_awq.profiles")))


def load_targets() -> tuple[Target, ...]:
    """Every target that ships with edge-awq, by name."""
    return tuple(read_target(path) for path in sorted(profile_folder().glob("*.toml")))


def find_target(name: str) -> Target:
    """The target called ``name``; an unknown one is an error that lists those that exist."""
    targets = load_targets()
    for target in targets:
        if target.name == name:
            return target
    raise EdgeAwqError(f"target '{name}' is not known", hint=f"known: {', '.join(t.name for t in targets)}")


def read_target(path: Path) -> Target:
    """Read one profile; a missing or unknown key is an error that names it."""
    table = load_toml(path)
    sections = {"limits": Limits, "quant": QuantSpec}
    for section, kind in sections.items():
        table[section] = kind(**_exactly(kind, table.get(section, {}), f"{path.name} [{section}]"))
    return Target(**_exactly(Target, table, path.name))


def _exactly(kind: type, table: dict[str, Any], where: str) -> dict[str, Any]:
    known = {field.name for field in fields(kind)}
    if wrong := sorted(known ^ set(table)):
        raise EdgeAwqError(f"{where}: keys {', '.join(wrong)} are missing or not known",
                           hint=f"expected exactly: {', '.join(sorted(known))}")
    return table
