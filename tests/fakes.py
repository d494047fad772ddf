"""A scripted engine and a clock that only moves when told: what the runner does with them is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class FakeClock:
    """Seconds that pass only by ``advance``."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class FakeEngine:
    """Follows a script: the n-th logits favour the n-th id. Prefill takes 1 s per token, a step 0.25 s."""

    def __init__(self, script: Sequence[int], clock: FakeClock, context: int = 64, vocab_size: int = 600) -> None:
        self.context, self.vocab_size, self.length = context, vocab_size, 0
        self.fed: list[int] = []
        self.closed = False
        self._script = iter(script)
        self._clock = clock
        self._logits = np.zeros(vocab_size, np.float32)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        assert ids, "the runner must not prefill nothing"
        self._clock.advance(1.0 * len(ids))
        return self._append(ids)

    def step(self, token_id: int) -> np.ndarray:
        self._clock.advance(0.25)
        return self._append([token_id])

    def truncate(self, length: int) -> None:
        assert length <= self.length
        self.length = length

    def close(self) -> None:
        self.closed = True

    def _append(self, ids: Sequence[int]) -> np.ndarray:
        self.fed += ids
        self.length += len(ids)
        assert self.length <= self.context, "the runner must not overfill the cache"
        self._logits[:] = 1  # the same array each time, as an engine may do
        self._logits[next(self._script)] = 10
        return self._logits


class RandomEngine:
    """Any token may come, and whole texts are likeliest that are of no form."""

    context = 400

    def __init__(self, vocab_size, seed):
        self.vocab_size, self.length, self._random = vocab_size, 0, np.random.default_rng(seed)

    def prefill(self, ids):
        return self.logits(ids)[-1]

    def step(self, token_id):
        return self.logits([token_id])[0]

    def logits(self, ids):
        self.length += len(ids)
        return self._random.normal(size=(len(ids), self.vocab_size)).astype(np.float32)

    def step_greedy(self, token_id):
        raise AssertionError("the device knows no form")

    begin_sampling = step_sampled = step_greedy

    def truncate(self, length):
        self.length = length


class ScriptedEngine(RandomEngine):
    """Says a text, and then anything."""

    def __init__(self, vocab_size, seed, script):
        super().__init__(vocab_size, seed)
        self.script = list(script)

    def logits(self, ids):
        logits = super().logits(ids)
        if self.script:
            logits[-1][self.script.pop(0)] = 100
        return logits
