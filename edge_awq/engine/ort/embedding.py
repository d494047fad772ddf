"""Rows of the token embedding, read from the weights file as they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_awq.errors import EdgeAwqError
from edge_awq.weights import DTYPES, read_layout

TABLE = "embed.weight"


class Embedding:
    """The stored table [vocab_size, hidden_size] float16; read, not mapped, so that it never counts as resident."""

    def __init__(self, weights: Path) -> None:
        layout = read_layout(weights)
        if TABLE not in layout:
            raise EdgeAwqError(f"{weights}: tensor '{TABLE}' is missing", hint="build or copy the bundle again")
        self._table = layout[TABLE]
        self._file = os.open(weights, os.O_RDONLY)

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """The rows of ``ids`` (each below vocab_size) as float32 [1, tokens, hidden_size]."""
        rows = np.empty((1, len(ids), self._table.shape[1]), DTYPES[self._table.dtype])
        for row, token in zip(rows[0], ids, strict=True):
            os.preadv(self._file, [row], self._table.offset + token * row.nbytes)
        return rows.astype(np.float32)

    def close(self) -> None:
        """Close the weights file."""
        os.close(self._file)
