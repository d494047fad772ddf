"""The protocol that every runtime's engine follows; the runner knows nothing else about engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.runner.sampling import SamplingSettings


class Engine(Protocol):
    """One loaded model with one KV cache, batch 1.

    What only some can do (AllLogitsEngine, GreedyEngine, SamplingEngine) is looked for by name; so is ``provenance``,
    what a run log should say of the engine beside the bundle's manifest: its file, runtime_version, and by name its
    passes.

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


class GreedyEngine(Engine, Protocol):
    """An engine that can choose the likeliest token where it computes, so that no logits leave its memory."""

    def step_greedy(self, token_id: int) -> int:
        """Append one token; returns the likeliest next one, of equals the first.

        Raises:
            EdgeAwqError: also where the logits of the last call of this kind were not finite.
        """
        ...


class SamplingEngine(GreedyEngine, Protocol):
    """An engine that can also draw tokens where it computes.

    A draw is decided by the logits, the settings, the seed and the length of the cache: the same text and seed give the
    same tokens, whatever ran before, and the turns of a chat draw anew. They are not those that the runner would draw
    with that seed.
    """

    def begin_sampling(self, sampling: SamplingSettings) -> None:
        """How ``step_sampled`` draws from now on; without a seed, a random one is taken.

        Raises:
            EdgeAwqError: there is a repetition penalty.
        """
        ...

    def step_sampled(self, token_id: int) -> int:
        """Append one token; returns the next one, drawn as ``begin_sampling`` says.

        Raises:
            EdgeAwqError: also where nothing was begun, or the logits of the last call were not finite.
        """
        ...


def not_finite() -> EdgeAwqError:
    """The error of logits that hold NaN or infinity, or leave no token."""
    return EdgeAwqError("the model's logits are not finite numbers",
                        hint="build the bundle again; if it stays so, compare with --precision fp16")


class AllLogitsEngine(Engine, Protocol):
    """An engine that also gives the logits after every token of a call."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids (at least one) to the cache; returns the logits after each, [tokens, vocab_size] float32."""
        ...
