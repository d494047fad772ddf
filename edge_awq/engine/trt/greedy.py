"""Greedy decoding in which the GPU does not wait for the host: each pass finds its token where the last one left it.

So a pass is on the stream before the host has seen the token that it takes, and the GPU works on while the host reads,
decodes and prints:

    host     start 1, start 2 | token 1, start 3 | token 2, start 4 | ...
    GPU              pass 1   |      pass 2      |      pass 3      | ...

Nor does it matter that a host which sleeps while it waits, to save power, wakes a little late. If another token comes,
or none, the pass that is under way was for nothing: its keys and values lie behind the end of the cache.

Not yet verified on device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_awq.engine.base import not_finite
from edge_awq.engine.trt.passes import TOKENS, Pass
from edge_awq.engine.trt.runtime import TrtEngine

if TYPE_CHECKING:
    from edge_awq.engine.trt.weight_input import WeightInput

WORD_BYTES = 4  # the low one of a chosen token is its id, the high one 0 if its logit is finite


class GreedyTrtEngine(TrtEngine):
    """With passes that choose the likeliest token; see GreedyEngine of edge_awq.engine.base."""

    _fits_more = "; with --kv-bits 8 about twice as many tokens do"

    _expected: int | None = None  # what the pass takes that was put on the stream last, if nobody asked for it yet
    _is_busy = False  # passes may be under way that nobody waited for
    _slot = 0  # of the host's arrays: two passes are on the stream at once

    def step_greedy(self, token_id: int) -> int:
        """Append one token; returns the likeliest next one: eight bytes leave the device, and no logits."""
        self._check_ids([token_id])
        if token_id != self._expected:
            self._begin(token_id)
        self._expected, slot = None, self._slot
        self.length += 1
        if self.length < self.context:
            self._cuda.copy(self._ids, self._tokens, WORD_BYTES)
            self._enqueue()
        self._cuda.wait(self._done[slot])
        high, chosen = divmod(int(self._host_tokens[slot]), 1 << 8 * WORD_BYTES)
        if high:
            raise not_finite()
        if self._slot != slot:
            self._expected = chosen
        return chosen

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        self._finish()
        super().truncate(length)

    def _begin(self, token_id: int) -> None:
        """Put a pass on the stream that takes the host's token."""
        self._finish()
        self._host_ids[0] = token_id
        self._cuda.upload(self._ids, self._host_ids[:1])
        self._enqueue()

    def _enqueue(self) -> None:
        """Put a pass on the stream behind all that is there; its token is on the device."""
        self._is_busy, self._slot = True, 1 - self._slot
        here = slice(self._slot, self._slot + 1)
        self._host_pasts[here] = self.length
        self._cuda.upload(self._past, self._host_pasts[here])
        self._decode.run(self._cuda, 1, as_graph=True)
        self._cuda.download(self._host_tokens[here], self._tokens)
        self._cuda.record(self._done[self._slot])

    def _finish(self) -> None:
        """Wait for a pass that nobody asked for, and forget what it found."""
        self._expected = None
        if self._is_busy:
            self._cuda.synchronize()
            self._is_busy = False

    def _append(self, ids: Sequence[int], one: Pass, wanted: tuple[np.ndarray, int] | None = None) -> None:
        self._finish()
        super()._append(ids, one, wanted)

    def _make_buffers(self) -> None:
        super()._make_buffers()
        self._host_tokens = self._cuda.host_array((2,), np.int64)  # or TensorRT 8's two INT32: the same bytes
        self._host_pasts = self._cuda.host_array((2,), np.int64)
        self._done = self._cuda.event(), self._cuda.event()
        self._tokens = self._cuda.alloc(self._decode.most_rows * self._host_tokens.itemsize)

    def _bind(self, one: Pass, weights: Mapping[WeightInput, int]) -> None:
        super()._bind(one, weights)
        if TOKENS in one.outputs:
            one.bind(TOKENS, self._tokens)
