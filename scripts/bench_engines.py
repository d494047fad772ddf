#!/usr/bin/env python3
"""One engine in a process of its own: loads a model, then answers requests on stdin, one JSON line each way.

Free of edge_awq and of everything but the engine's own library, so that it also runs in an environment that holds a
peer alone, and so that peak memory is the engine's.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class LoadRequest:
    """threads: CPU threads; context: tokens that the KV cache must hold."""

    model: str
    threads: int
    context: int


class BenchEngine(Protocol):
    """What is measured. Every call ends when logits are there; greedy choice of the next token is part of a step.

    Attributes:
        module: what to import for it.
        packages: distributions whose versions are noted.
    """

    module: str
    packages: tuple[str, ...]

    def __init__(self, request: LoadRequest) -> None: ...

    def reset(self) -> None:
        """Empty the KV cache; not timed."""
        ...

    def prefill(self, ids: list[int]) -> None:
        """Run a prompt."""
        ...

    def decode(self, count: int) -> None:
        """Run ``count`` steps; the end-of-text token means nothing."""
        ...


class EdgeAwq:
    """This project's bundle through its Python API."""

    module = "edge_awq.runner.session"
    packages = ("edge-awq", "onnxruntime")

    def __init__(self, request: LoadRequest) -> None:
        from edge_awq.runner.session import load

        self._session = load(request.model, threads=request.threads, context=request.context)

    def reset(self) -> None:
        self._session.reset()

    def prefill(self, ids: list[int]) -> None:
        self._next = int(self._session.prefill(ids).argmax())

    def decode(self, count: int) -> None:
        for _ in range(count):
            self._next = int(self._session.step(self._next).argmax())


class LlamaCpp:
    """llama.cpp through llama-cpp-python, one GGUF file."""

    module = "llama_cpp"
    packages = ("llama-cpp-python",)

    def __init__(self, request: LoadRequest) -> None:
        import llama_cpp

        self._llama = llama_cpp.Llama(request.model, n_ctx=request.context, n_batch=512, n_threads=request.threads,
                                      n_threads_batch=request.threads, verbose=False)

    def reset(self) -> None:
        self._llama.reset()

    def prefill(self, ids: list[int]) -> None:
        import numpy as np

        self._llama.eval(ids)
        logits = np.ctypeslib.as_array(self._llama._ctx.get_logits_ith(-1), shape=(self._llama.n_vocab(),))
        self._next = int(logits.argmax())

    def decode(self, count: int) -> None:
        for _ in range(count):
            self.prefill([self._next])


class OrtGenai:
    """onnxruntime-genai on a folder that its model builder made."""

    module = "onnxruntime_genai"
    packages = ("onnxruntime-genai", "onnxruntime")

    def __init__(self, request: LoadRequest) -> None:
        import onnxruntime_genai

        config = onnxruntime_genai.Config(request.model)
        options = {"session_options": {"intra_op_num_threads": request.threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self._genai, self._context = onnxruntime_genai, request.context
        self._model = onnxruntime_genai.Model(config)
        self.reset()

    def reset(self) -> None:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self._context, min_length=self._context, do_sample=False)
        self._generator = self._genai.Generator(self._model, params)

    def prefill(self, ids: list[int]) -> None:
        import numpy as np

        self._generator.append_tokens(np.asarray([ids], dtype=np.int32))
        self._generator.generate_next_token()  # chooses from the logits that are there; the next call runs the model

    def decode(self, count: int) -> None:
        for _ in range(count):
            self._generator.generate_next_token()


ENGINES: dict[str, type[BenchEngine]] = {"edge-awq": EdgeAwq, "llama.cpp": LlamaCpp, "onnxruntime-genai": OrtGenai}


def serve(name: str, request: LoadRequest) -> None:
    """Load, say so, then answer {"do": "prefill", "ids": [...]} and {"do": "decode", "count": n} until stdin ends.

    Importing the engine's library is not part of the load time.
    """
    importlib.import_module(ENGINES[name].module)
    started = time.perf_counter()
    engine = ENGINES[name](request)
    versions = {package: _version(package) for package in ENGINES[name].packages}
    _reply({"load_s": time.perf_counter() - started, "versions": versions})
    for line in sys.stdin:
        work = json.loads(line)
        if work["do"] == "prefill":
            engine.reset()
        wall, cpu = time.perf_counter(), time.process_time()
        if work["do"] == "prefill":
            engine.prefill(work["ids"])
        else:
            engine.decode(work["count"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        _reply({"wall_s": wall, "cpu_s": cpu, "peak_rss_bytes": _peak_rss_bytes()})


def _reply(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _peak_rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM; peak memory is measured on Linux only")


if __name__ == "__main__":
    serve(sys.argv[1], LoadRequest(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
