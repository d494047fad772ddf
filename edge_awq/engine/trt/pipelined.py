"""Decoding in which the GPU does not wait for the host: each pass finds its token where the last one left it.

The passes choose the tokens themselves, the likeliest or a drawn one. So a pass is on the stream before the host has
seen the token that it takes, and the GPU works on while the host reads, decodes and prints:

    host     start 1, start 2 | token 1, start 3 | token 2, start 4 | ...
    GPU              pass 1   |      pass 2      |      pass 3      | ...

Nor does it matter that a host which sleeps while it waits, to save power, wakes a little late. If another token comes,
or none, the pass that is under way was for nothing: its keys and values lie behind the end of the cache. A draw depends
on logits, settings, seed and the length of the cache, so no pass that was for nothing changes a token.

Not yet verified on device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_awq.engine.base import not_finite
from edge_awq.engine.trt.names import SAMPLE_SETTINGS, SEED, SETTINGS, TOKENS
from edge_awq.engine.trt.passes import Pass
from edge_awq.engine.trt.runtime import TrtEngine
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.engine.trt.weight_input import WeightInput
    from edge_awq.runner.sampling import SamplingSettings

WORD_BYTES = 4  # the low one of a chosen token is its id, the high one 0 if its logit is finite


class _Choice(NamedTuple):
    """How a pass chooses: ``settings`` as SAMPLE_SETTINGS has them, and the seed of its draws, 64 bits."""

    settings: tuple[float, ...]
    seed: int


_GREEDY = _Choice((0.0,) * len(SAMPLE_SETTINGS), 0)


class PipelinedTrtEngine(TrtEngine):
    """With passes that choose the next token; see SamplingEngine of edge_awq.engine.base."""

    _fits_more = "; with --kv-bits 8 about twice as many tokens do"

    _sampling: _Choice | None = None  # what was begun last
    # What the pass takes that was put on the stream last, and how it chooses, if nobody asked for it yet.
    _expected: tuple[int, _Choice] | None = None
    _is_busy = False  # passes may be under way that nobody waited for
    _slot = 0  # of the host's arrays: two passes are on the stream at once

    def step_greedy(self, token_id: int) -> int:
        """Append one token; returns the likeliest next one: eight bytes leave the device, and no logits."""
        return self._step(token_id, _GREEDY)

    def begin_sampling(self, sampling: SamplingSettings) -> None:
        """How ``step_sampled`` draws from now on; without a seed, a random one is taken.

        Raises:
            EdgeAwqError: a repetition penalty, for which the device does not know the tokens so far.
        """
        if sampling.repetition_penalty != 1:
            raise EdgeAwqError(f"repetition_penalty = {sampling.repetition_penalty} is not possible on the device",
                               hint="draw from the logits that step gives")
        values = (sampling.temperature, min(sampling.top_k, self.vocab_size), sampling.top_p, sampling.min_p)
        (seed,) = np.random.SeedSequence(sampling.seed).generate_state(1, np.uint64)  # of a seed of any size
        self._sampling = _Choice(tuple(map(float, values)), int(seed))

    def step_sampled(self, token_id: int) -> int:
        """Append one token; returns the next one, drawn as ``begin_sampling`` says: eight bytes leave the device."""
        if self._sampling is None:
            raise EdgeAwqError("nothing says how to draw a token", hint="call begin_sampling first")
        return self._step(token_id, self._sampling)

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        self._finish()
        super().truncate(length)

    def _step(self, token_id: int, choice: _Choice) -> int:
        self._check_ids([token_id])
        if (token_id, choice) != self._expected:
            self._begin(token_id, choice)
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
            self._expected = chosen, choice
        return chosen

    def _begin(self, token_id: int, choice: _Choice) -> None:
        """Put a pass on the stream that takes the host's token; it and those behind it choose as ``choice`` says."""
        self._finish()
        self._host_ids[0] = token_id
        with np.errstate(over="ignore"):  # the kernel takes an infinite temperature
            self._host_settings[:] = choice.settings
        self._host_seed[0] = choice.seed
        self._cuda.upload(self._ids, self._host_ids[:1])
        self._cuda.upload(self._settings, self._host_settings)
        self._cuda.upload(self._seed, self._host_seed)
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
        cuda = self._cuda
        self._host_tokens = cuda.host_array((2,), np.int64)  # or TensorRT 8's two INT32: the same bytes
        self._host_pasts = cuda.host_array((2,), np.int64)
        self._host_settings = cuda.host_array((len(SAMPLE_SETTINGS),), np.float32)
        self._host_seed = cuda.host_array((1,), np.uint64)
        self._done = cuda.event(), cuda.event()
        self._tokens = cuda.alloc(self._decode.most_rows * self._host_tokens.itemsize)
        self._settings, self._seed = (cuda.alloc(each.nbytes) for each in (self._host_settings, self._host_seed))
        for address, zeros in ((self._settings, self._host_settings), (self._seed, self._host_seed)):
            cuda.clear(address, zeros.nbytes)  # greedy, which is fastest: a prompt's passes choose as well, for nobody

    def _bind(self, one: Pass, weights: Mapping[WeightInput, int]) -> None:
        super()._bind(one, weights)
        for name, address in ((SETTINGS, self._settings), (SEED, self._seed), (TOKENS, self._tokens)):
            if name in (*one.inputs, *one.outputs):
                one.bind(name, address)
