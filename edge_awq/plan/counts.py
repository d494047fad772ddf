"""A model in numbers: the matrices that a token passes, and what its keys and values take. Needs no torch."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_awq.model.config import DecoderConfig, read_config
from edge_awq.model.family import Family
from edge_awq.shapes import Shape

HALF, FULL = 2, 4  # bytes of float16 and float32


@dataclass(frozen=True)
class Counts:
    """One decoder in canonical numbers.

    Attributes:
        linears: canonical name -> (N, K) of every matrix in a block, in the order of the forward pass.
        norm_size: elements of all norms in a block.
        kv_size: elements of a key, and of a value, of one token in one layer.
        position_bytes: what the stored tables of positions, rotary or learned, hold for each position.
        windows: per layer, the number of newest positions a query sees; None sees all.
    """

    linears: dict[str, tuple[int, int]]
    norm_size: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_kv_heads: int
    kv_size: int
    position_bytes: int
    max_positions: int
    windows: tuple[int | None, ...]
    tied_head: bool

    @property
    def linear_weights(self) -> int:
        """Weights of all matrices in all blocks."""
        return self.num_layers * sum(rows * inputs for rows, inputs in self.linears.values())

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.vocab_size * self.hidden_size


def counts_of(family: Family, config: DecoderConfig) -> Counts:
    """The numbers of a decoder; a head that config.json does not tie counts as a matrix of its own.

    Biases are left out: config.json does not know them, and they are less than 0.1 % of a model.
    """
    rotated = sum(rope.rotary_size for rope in config.ropes.values())
    return Counts(
        linears={name: config.linear_shape(name) for name in family.linears},
        norm_size=sum(map(config.norm_size, family.norms)),
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_kv_heads=config.num_kv_heads,
        kv_size=config.kv_size,
        position_bytes=FULL * rotated + (HALF * config.hidden_size if "positions" in family.names else 0),
        max_positions=config.max_positions,
        windows=config.windows,
        tied_head=bool(config.tied_head),
    )


def counts_in(folder: Path) -> Counts:
    """The numbers of the checkpoint in ``folder``, from its config.json alone."""
    return counts_of(*read_config(folder))


def counts_of_shape(shape: Shape) -> Counts:
    """The numbers of an exact shape."""
    return counts_of_config(shape.config)


def counts_of_config(config: dict[str, Any]) -> Counts:
    """The numbers of what would stand in a config.json."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return counts_in(Path(folder))

