"""Prefix reuse: what a new prompt has in common with the KV cache, from the start on, is not run again.

The second turn of a chat begins with all of the first. Its keys and values are those that running it again would give,
as far as the engine's results do not depend on how many tokens run at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_awq.engine.base import Engine


class PrefixEngine:
    """An engine that knows which tokens are in its cache; see edge_awq.engine.base.Engine.

    What else the engine can do, it can do here too.

    Attributes:
        engine: the one that runs them.
    """

    def __init__(self, engine: Engine) -> None:
        """Wrap ``engine``, whose cache is empty and which nobody else feeds."""
        self.engine = engine
        self.context, self.vocab_size = engine.context, engine.vocab_size
        self._tokens: list[int] = []  # the first ``length`` are in the cache
        if hasattr(engine, "logits"):
            self.logits = self._logits
        if hasattr(engine, "step_greedy"):
            self.step_greedy = self._step_greedy
        if hasattr(engine, "step_sampled"):
            self.begin_sampling, self.step_sampled = engine.begin_sampling, self._step_sampled

    @property
    def length(self) -> int:
        """Tokens in the KV cache now."""
        return self.engine.length

    def keep(self, ids: Sequence[int]) -> int:
        """Forget all of the cache that is not the beginning of ``ids``.

        Returns:
            How many of ``ids`` are in the cache, never all: the last must run to give logits.
        """
        most = min(self.length, max(len(ids) - 1, 0))
        common = next((place for place in range(most) if self._tokens[place] != ids[place]), most)
        self.truncate(common)
        return common

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids (at least one) to the cache; returns logits [vocab_size] float32 after the last."""
        self._note(ids)
        return self.engine.prefill(ids)

    def step(self, token_id: int) -> np.ndarray:
        """Append one token; returns logits [vocab_size] float32, which the next call may overwrite."""
        self._note([token_id])
        return self.engine.step(token_id)

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        self.engine.truncate(length)

    def close(self) -> None:
        """Release the runtime's memory; the engine cannot be used afterwards."""
        self.engine.close()

    def _logits(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids to the cache; returns the logits after each, [tokens, vocab_size] float32."""
        self._note(ids)
        return self.engine.logits(ids)

    def _step_greedy(self, token_id: int) -> int:
        """Append one token; returns the likeliest next one."""
        self._note([token_id])
        return self.engine.step_greedy(token_id)

    def _step_sampled(self, token_id: int) -> int:
        """Append one token; returns the next one, drawn."""
        self._note([token_id])
        return self.engine.step_sampled(token_id)

    def _note(self, ids: Sequence[int]) -> None:
        """Before they run: a call that is broken off may leave any number of them in the cache."""
        self._tokens[self.length :] = map(int, ids)
