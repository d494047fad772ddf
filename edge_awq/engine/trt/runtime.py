"""The engine that runs compiled passes with TensorRT: weights and one KV cache in device memory, batch 1.

Keys and values of a layer are one buffer each; every pass has it bound as past and as present, so a step writes its
rows in place. The length of the cache is read from device memory, so a decode pass of n tokens is captured once as a
CUDA graph, after it ran once, and launched from then on whatever the length. Not yet verified on device.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_awq.engine.trt.bindings import Toolkit
from edge_awq.engine.trt.cuda import Cuda
from edge_awq.engine.trt.names import IDS, LOGITS, PAST_LENGTH
from edge_awq.engine.trt.passes import CACHE, DECODE, PREFILL, LoadedPlan, Pass
from edge_awq.engine.trt.plan_cache import StoredEngine
from edge_awq.engine.trt.upload import PIECE_BYTES, content, upload_weights
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.engine.trt.kernel_cache import KernelCache
    from edge_awq.engine.trt.weight_input import WeightInput

CONTEXT_STEP = 128  # a context that fits is rounded down to a multiple


class TrtEngine:
    """One loaded model with one KV cache; see AllLogitsEngine of edge_awq.engine.base."""

    _fits_more = ""  # what else the hint of a context that does not fit says

    def __init__(self, toolkit: Toolkit, cuda: Cuda, stored: StoredEngine, weights: Path, context: int,
                 kernels: KernelCache | None = None) -> None:
        """Load what was compiled.

        Args:
            weights: the bundle's weights file.
            context: the cache's size in tokens.
            kernels: those that the runtime compiles while it runs; an engine that has them has one plan.

        Raises:
            EdgeAwqError: the engine does not load, or it and its cache do not fit into memory.
        """
        self.context, self.length = context, 0
        self._cuda, self._open = cuda, _Open(cuda, kernels)
        self._passes = self._open.passes
        self._finalizer = weakref.finalize(self, self._open.close)  # also where nobody closes it, before Python ends
        try:
            self._load(toolkit, stored, weights)
        except BaseException:
            self.close()
            raise

    def _load(self, toolkit: Toolkit, stored: StoredEngine, weights: Path) -> None:
        for name, plan in stored.plans.items():
            self._open.plans[name] = LoadedPlan(toolkit, plan, self._open.kernels)
        nbytes = max(plan.activation_bytes for plan in self._open.plans.values())
        activations = self._cuda.alloc(nbytes), nbytes
        for plan in self._open.plans.values():
            plan.activations = activations
        for name, table in stored.passes.items():
            self._passes[name] = Pass(toolkit, self._open.plans[table["plan"]], table, self._cuda.stream)
        self._decode = self._passes[DECODE]
        self.vocab_size = self._decode.shape(LOGITS)[-1]
        self.provenance = {**_provenance(toolkit, stored), "kv_bits": self._kv_bits()}
        self._check_memory()
        inputs = upload_weights(self._cuda, (each for one in self._passes.values() for each in one.weights), weights)
        self._caches = {name: self._empty_cache(name) for name in self._cache_names()}
        self._make_buffers()
        for one in self._passes.values():
            self._bind(one, inputs)
        self._decode.prepare(1)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids (at least one) to the cache, in chunks; returns logits [vocab_size] float32 after the last.

        The array may be overwritten by the next call.

        Raises:
            EdgeAwqError: no ids, one outside the vocabulary, more than the cache has room for, or the GPU failed.
        """
        self._check_ids(ids)
        widest = self._passes.get(PREFILL, self._decode)
        *chunks, newest = _chunks(ids, widest.most_rows)
        for chunk in chunks:
            self._append(chunk, self._fitting(chunk))
        one, last = self._fitting(newest), self._host_logits[:1]
        row = 0 if one.last_logits else len(newest) - 1
        self._append(newest, one, (last, self._logits + row * last.nbytes))
        return last[0]

    def step(self, token_id: int) -> np.ndarray:
        """Append one token; returns logits [vocab_size] float32, which the next call may overwrite."""
        return self.prefill([token_id])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids (at least one) to the cache; returns the logits after each, [tokens, vocab_size] float32."""
        self._check_ids(ids)
        logits = np.empty((len(ids), self.vocab_size), np.float32)
        start = 0
        for chunk in _chunks(ids, self._decode.most_rows):
            found = self._host_logits[: len(chunk)]
            self._append(chunk, self._decode, (found, self._logits))
            logits[start : start + len(found)] = found
            start += len(found)
        return logits

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        if not 0 <= length <= self.length:
            raise EdgeAwqError(f"cannot keep {length} tokens of a cache that holds {self.length}",
                               hint="give a length between 0 and what is cached")
        self.length = length

    def close(self) -> None:
        """Release device memory; the engine cannot be used afterwards."""
        self._finalizer()

    def _fitting(self, ids: Sequence[int]) -> Pass:
        """The pass for a chunk."""
        return self._decode if len(ids) <= self._decode.most_rows else self._passes[PREFILL]

    def _append(self, ids: Sequence[int], one: Pass, wanted: tuple[np.ndarray, int] | None = None) -> None:
        """Run one chunk; ``wanted``: an array to fill from an address afterwards."""
        self._host_ids[: len(ids)] = ids
        self._host_past[0] = self.length
        self._cuda.upload(self._ids, self._host_ids[: len(ids)])
        self._cuda.upload(self._past, self._host_past)
        one.run(self._cuda, len(ids), as_graph=one is self._decode)
        if wanted is not None:
            self._cuda.download(*wanted)
        self._cuda.synchronize()  # the host's arrays are used again
        self.length += len(ids)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if len(ids) == 0:
            raise EdgeAwqError("no tokens to run", hint="give at least one token")
        if self.length + len(ids) > self.context:
            raise EdgeAwqError(f"{self.length} + {len(ids)} tokens do not fit into the context of {self.context}",
                               hint="shorten the prompt, or use a model or target with a larger context")
        if unknown := [token for token in ids if not 0 <= token < self.vocab_size]:
            raise EdgeAwqError(f"token {unknown[0]} is outside the vocabulary of {self.vocab_size}",
                               hint="use the tokenizer that came with the model")

    def _cache_names(self) -> list[str]:
        return [name for name in self._decode.inputs if name.startswith(CACHE)]

    def _kv_bits(self) -> int:
        return 8 * self._decode.dtype(f"{CACHE[0]}0").itemsize

    def _cache_bytes(self, name: str, context: int) -> int:
        _, heads, _, *size = self._decode.shape(name)  # scales have no more
        return heads * context * math.prod(size) * self._decode.dtype(name).itemsize

    def _empty_cache(self, name: str) -> int:
        """Address of zeros: without plugins rows that nothing was written to are masked, but read."""
        nbytes = self._cache_bytes(name, self.context)
        address = self._cuda.alloc(nbytes)
        self._cuda.clear(address, nbytes)
        return address

    def _most_rows(self) -> int:
        return max(one.most_rows for one in self._passes.values())

    def _check_memory(self) -> None:
        """The cache must fit beside weights and buffers; activations have their memory already."""
        unique = {content(each): each.nbytes for one in self._passes.values() for each in one.weights}
        fixed = sum(unique.values()) + self._decode.most_rows * self.vocab_size * 4 + PIECE_BYTES
        a_token = sum(self._cache_bytes(name, 1) for name in self._cache_names())
        free = self._cuda.free_bytes()
        if fixed + a_token * self.context <= free:
            return
        fitting = (free - fixed) // a_token // CONTEXT_STEP * CONTEXT_STEP
        needed = f"{(fixed + a_token * self.context) / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        more = self._fits_more if self._kv_bits() > 8 else ""
        raise EdgeAwqError(f"a context of {self.context} tokens and the weights need {needed}",
                           hint=f"--context {fitting} fits{more}" if fitting > 0 else
                           f"the weights alone need {fixed / 1e6:.0f} MB: close what else uses the GPU, or use a "
                           "smaller model")

    def _make_buffers(self) -> None:
        cuda, rows = self._cuda, self._most_rows()
        ids_dtype = self._decode.dtype(IDS)
        self._host_ids = cuda.host_array((rows,), ids_dtype)
        # TensorRT 8 has two INT32 in its place, low word first: the same bytes.
        self._host_past = cuda.host_array((1,), np.int64)
        self._host_logits = cuda.host_array((self._decode.most_rows, self.vocab_size), np.float32)
        self._ids = cuda.alloc(rows * ids_dtype.itemsize)
        self._past = cuda.alloc(self._host_past.nbytes)
        self._logits = cuda.alloc(self._host_logits.nbytes)

    def _bind(self, one: Pass, weights: Mapping[WeightInput, int]) -> None:
        for weight in one.weights:
            one.bind(weight.name, weights[weight])
        one.bind(IDS, self._ids, (1, 1))
        one.bind(PAST_LENGTH, self._past)
        one.bind(LOGITS, self._logits)
        for name, address in self._caches.items():
            _, heads, _, *size = one.shape(name)
            one.bind(name, address, (1, heads, self.context, *size))
            one.bind(name.replace("past_", "present_", 1), address)


class _Open:
    """What an engine has to give back."""

    def __init__(self, cuda: Cuda, kernels: KernelCache | None) -> None:
        self.cuda, self.kernels = cuda, kernels
        self.plans: dict[str, LoadedPlan] = {}
        self.passes: dict[str, Pass] = {}

    def close(self) -> None:
        """Release graphs and contexts, then engines, then memory and the GPU: all of them, whatever fails."""
        with suppress(EdgeAwqError), ExitStack() as steps:  # a GPU that is lost cannot give back anything
            steps.callback(self.cuda.close)
            for plan in self.plans.values():
                steps.callback(plan.close)
            for one in self.passes.values():
                steps.callback(one.close, self.cuda)
            self.cuda.synchronize()  # after Ctrl-C a pass may be under way, in what is released now
            if self.kernels:
                self.kernels.save()


def _provenance(toolkit: Toolkit, stored: StoredEngine) -> dict[str, Any]:
    """What a run log says of the engine."""
    passes = {name: {"most_tokens": table["most_rows"], "sha256": stored.sha256[table["plan"]]}
              for name, table in stored.passes.items()}
    return {"file": stored.file, "runtime": toolkit.name.lower(), "runtime_version": toolkit.version_text,
            "passes": passes}


def _chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
