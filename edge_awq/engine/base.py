"""The protocol that every runtime's engine follows; the runner knows nothing else about engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Engine(Protocol):
    """One loaded model with one KV cache, batch 1.

    Attributes:
        context: tokens that fit into the KV cache.
        vocab_size: entries of a logits vector.
        length: tokens in the KV cache now.
    """

    context: int
    vocab_size: int
    length: int

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids (at least one) to the cache, in chunks; returns logits [vocab_size] float32 after the last.

        The array may be overwritten by the next call.
        """
        ...

    def step(self, token_id: int) -> np.ndarray:
        """Append one token; returns logits [vocab_size] float32, which the next call may overwrite."""
        ...

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        ...

    def close(self) -> None:
        """Release the runtime's memory; the engine cannot be used afterwards."""
        ...


class AllLogitsEngine(Engine, Protocol):
    """An engine that also gives the logits after every token of a call."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids (at least one) to the cache; returns the logits after each, [tokens, vocab_size] float32."""
        ...
