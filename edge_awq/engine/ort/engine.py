"""The engine that runs a lowered graph with onnxruntime: one session, one KV cache that never moves, batch 1."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_awq.bundle import ENGINES
from edge_awq.engine.ort.embedding import Embedding
from edge_awq.engine.ort.inputs import token_inputs
from edge_awq.engine.ort.runtime import OrtValue, __version__
from edge_awq.engine.ort.session import SessionSettings, create_session
from edge_awq.engine.ort.windows import counted_here
from edge_awq.errors import EdgeAwqError


@dataclass(frozen=True)
class EngineSettings:
    """How an engine runs.

    Attributes:
        context: tokens that the KV cache can hold.
        prefill_chunk: prompt tokens per pass, which bounds the activations' memory.
    """

    context: int
    prefill_chunk: int
    session: SessionSettings = field(default_factory=SessionSettings)

    def __post_init__(self) -> None:
        for name in ("context", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise EdgeAwqError(f"{name} = {getattr(self, name)} is not possible", hint="use 1 or more")


class OrtEngine:
    """One loaded model with one KV cache; see edge_awq.engine.base.Engine.

    Keys and values of a layer are one buffer each, [1, kv_heads, context, head_size] float32, bound once as the graph's
    past and as its present, so that a step writes its rows in place. Its pages cost memory once they are written to.
    """

    def __init__(self, graph: Path, weights: Path, settings: EngineSettings) -> None:
        """Load the lowered ``graph``, whose constants are ranges of ``weights``.

        Raises:
            EdgeAwqError: the graph is missing, or onnxruntime cannot load it.
        """
        if not graph.is_file():
            raise EdgeAwqError(f"{graph} is missing",
                               hint="build the bundle with this version, for a target that runs on onnxruntime")
        self.provenance = {"file": f"{ENGINES}/{graph.name}", "runtime_version": __version__}
        self.context = settings.context
        self.length = 0
        self._prefill_chunk = settings.prefill_chunk
        self._session = create_session(counted_here(graph.read_bytes()), weights, settings.session)
        self._embedding = Embedding(weights)
        self._binding = self._session.io_binding()
        self._inputs = {value.name: value.shape for value in self._session.get_inputs()}
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        self.vocab_size: int = outputs["logits"][-1]
        self._logits = np.zeros((1, 1, self.vocab_size), np.float32)
        self._cache: list[np.ndarray] = []
        self._bind_cache(name for name in outputs if name.startswith("present_"))

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids (at least one) to the cache, in chunks; returns logits [vocab_size] float32 after the last.

        The array may be overwritten by the next call.

        Raises:
            EdgeAwqError: no ids, one outside the vocabulary, or more than the cache has room for.
        """
        for chunk in self._chunks(ids):
            self._run(chunk, self._logits)
        return self._logits[0, 0]

    def step(self, token_id: int) -> np.ndarray:
        """Append one token; returns logits [vocab_size] float32, which the next call may overwrite."""
        return self.prefill([token_id])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids to the cache; returns the logits after each of them, [tokens, vocab_size] float32."""
        logits = np.empty((1, len(ids), self.vocab_size), np.float32)
        start = 0
        for chunk in self._chunks(ids):
            self._run(chunk, logits[:, start : start + len(chunk)])
            start += len(chunk)
        return logits[0]

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        if not 0 <= length <= self.length:
            raise EdgeAwqError(f"cannot keep {length} tokens of a cache that holds {self.length}",
                               hint="give a length between 0 and what is cached")
        self.length = length

    def close(self) -> None:
        """Release session and cache; the engine cannot be used afterwards."""
        self._embedding.close()
        del self._binding, self._session, self._logits, self._cache

    def _bind_cache(self, presents: Iterator[str]) -> None:
        for present in presents:
            past = present.replace("present_", "past_", 1)
            _, kv_heads, _, head_size = self._inputs.pop(past)
            pages = _untouched_zeros((1, kv_heads, self.context, head_size))
            self._cache.append(pages)  # up to onnxruntime 1.23, the last for Python 3.10, an OrtValue does not keep it
            cache = OrtValue.ortvalue_from_numpy(pages)
            self._binding.bind_ortvalue_input(past, cache)
            self._binding.bind_ortvalue_output(present, cache)

    def _chunks(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        if len(ids) == 0:
            raise EdgeAwqError("no tokens to run", hint="give at least one token")
        if self.length + len(ids) > self.context:
            raise EdgeAwqError(f"{self.length} + {len(ids)} tokens do not fit into the context of {self.context}",
                               hint="shorten the prompt, or use a model or target with a larger context")
        if unknown := [token for token in ids if not 0 <= token < self.vocab_size]:
            raise EdgeAwqError(f"token {unknown[0]} is outside the vocabulary of {self.vocab_size}",
                               hint="use the tokenizer that came with the model")
        for start in range(0, len(ids), self._prefill_chunk):
            yield ids[start : start + self._prefill_chunk]

    def _run(self, ids: Sequence[int], logits: np.ndarray) -> None:
        """Append ids; fills ``logits`` [1, n, vocab_size] with those after the last n."""
        inputs = token_inputs(self._inputs, ids, self.length, logits.shape[1], self._embedding)
        for name, value in inputs.items():
            self._binding.bind_cpu_input(name, value)
        self._binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(logits))
        self._session.run_with_iobinding(self._binding)
        self.length += len(ids)


def _untouched_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, float32, in small pages that do not exist before they are written to.

    numpy asks for huge pages: with 4096 rows of 128 values a head is one of 2 MiB, so that its first row brings it all.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, max(math.prod(shape), 1) * np.dtype(np.float32).itemsize, flags=flags)
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.float32).reshape(shape)
