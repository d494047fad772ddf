"""Exact shapes of known models by name, in ``shapes.toml``: what they weigh is known without a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.toml import load_toml

SHAPES = Path(__file__).parent / "shapes.toml"


@dataclass(frozen=True)
class Shape:
    """One entry of shapes.toml.

    Attributes:
        config: the keys of config.json.
        biases: the linears and norms that have one.
    """

    name: str
    config: dict[str, Any]
    biases: tuple[str, ...] = ()


def shape_names() -> tuple[str, ...]:
    """All shapes in shapes.toml."""
    return tuple(load_toml(SHAPES))


def find_shape(name: str) -> Shape:
    """The shape called ``name``; an unknown one is an error that lists those that exist."""
    shapes = load_toml(SHAPES)
    if name not in shapes:
        raise EdgeAwqError(f"shape '{name}' is not known", hint=f"known: {', '.join(shapes)}; {SHAPES.name} takes more")
    config = shapes[name]
    biases = tuple(config.pop("biases", ()))
    return Shape(name, config, biases)
