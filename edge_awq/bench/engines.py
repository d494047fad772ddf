"""One engine in a process of its own: loads a model, then answers requests on stdin, one JSON line each way.

Run by its path, and free of edge_awq and of everything but the engine's own library, so that it also runs in an
environment that holds a peer alone, and so that peak memory is the engine's.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class LoadRequest:
    """What an engine loads.

    Attributes:
        threads: CPU threads, 0 for the engine's own choice.
        context: tokens that the KV cache must hold.
        device: what does the work, "cpu" or "gpu".
        options: of this engine alone.
    """

    model: str
    threads: int
    context: int
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)


class BenchEngine(Protocol):
    """What is measured. Every call ends when logits are there; greedy choice of the next token is part of a step.

    Attributes:
        module: what to import for it.
        packages: distributions whose versions are noted.

    An engine may also say ``versions``, of what else it runs on, and ``engine_sha256``, of the file that it runs.
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

    def step(self) -> None:
        """Feed the likeliest token; the end-of-text token means nothing."""
        ...


class EdgeAwq:
    """This project's bundle through its Python API."""

    module = "edge_awq.runner.session"
    packages = ("edge-awq",)

    def __init__(self, request: LoadRequest) -> None:
        from edge_awq.runner.session import load

        self._model = request.model
        self._session = load(request.model, threads=request.threads or None, context=request.context,
                             **request.options)
        self._likeliest_after = getattr(self._session.engine, "step_greedy", self._likeliest_by_logits)

    @property
    def versions(self) -> dict[str, str | None]:
        """Of the runtime that the bundle was built for."""
        loaded = self._session.loaded
        return {loaded.manifest.runtime: loaded.engine.get("runtime_version")}

    @property
    def engine_sha256(self) -> str | None:
        """Of the engine's file in the bundle."""
        from edge_awq.bundle import hash_file

        file = self._session.loaded.engine.get("file")
        return hash_file(Path(self._model) / file) if file else None

    def reset(self) -> None:
        self._session.reset()

    def prefill(self, ids: list[int]) -> None:
        self._next = int(self._session.prefill(ids).argmax())

    def step(self) -> None:
        self._next = self._likeliest_after(self._next)

    def _likeliest_by_logits(self, token_id: int) -> int:
        return int(self._session.step(token_id).argmax())


class Transformers:
    """A checkpoint in float16 through Hugging Face transformers: what people have before they quantize."""

    module = "transformers"
    packages = ("transformers", "torch")

    def __init__(self, request: LoadRequest) -> None:
        import torch
        import transformers

        if request.threads:
            torch.set_num_threads(request.threads)
        self._torch, self._device = torch, "cuda" if request.device == "gpu" else "cpu"
        model = transformers.AutoModelForCausalLM.from_pretrained(request.model, dtype=torch.float16)
        self._model = model.to(self._device).eval()
        self._cache = None

    def reset(self) -> None:
        self._cache = None

    def prefill(self, ids: list[int]) -> None:
        with self._torch.inference_mode():
            fed = self._torch.tensor([ids], device=self._device)
            answer = self._model(fed, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cache = answer.past_key_values
            self._next = int(answer.logits[0, -1].argmax())  # waits for the GPU

    def step(self) -> None:
        self.prefill([self._next])


class LlamaCpp:
    """llama.cpp through llama-cpp-python, one GGUF file."""

    module = "llama_cpp"
    packages = ("llama-cpp-python",)

    def __init__(self, request: LoadRequest) -> None:
        import llama_cpp

        threads = request.threads or None
        self._llama = llama_cpp.Llama(request.model, n_ctx=request.context, n_batch=512, n_threads=threads,
                                      n_threads_batch=threads, n_gpu_layers=-1 if request.device == "gpu" else 0,
                                      verbose=False)

    def reset(self) -> None:
        self._llama.reset()

    def prefill(self, ids: list[int]) -> None:
        import numpy as np

        self._llama.eval(ids)
        logits = np.ctypeslib.as_array(self._llama._ctx.get_logits_ith(-1), shape=(self._llama.n_vocab(),))
        self._next = int(logits.argmax())

    def step(self) -> None:
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

    def step(self) -> None:
        self._generator.generate_next_token()


ENGINES: dict[str, type[BenchEngine]] = {"edge-awq": EdgeAwq, "transformers": Transformers, "llama.cpp": LlamaCpp,
                                         "onnxruntime-genai": OrtGenai}
# What libraries say when memory is short and they raise no type of their own for it.
OUT_OF_MEMORY = ("bad_alloc", "can't allocate memory", "failed to allocate memory", "out of memory",
                 "cannot allocate memory")


def main(name: str, request: LoadRequest) -> int:
    """Serve until stdin ends; that memory is short is said in one line of JSON, any other failure by a traceback."""
    try:
        serve(name, request)
    except Exception as error:
        if is_out_of_memory(error):
            _reply({"oom": f"{type(error).__name__}: {error}".splitlines()[0]})
            return 1
        raise
    return 0


def is_out_of_memory(error: Exception) -> bool:
    """Whether an engine failed for want of memory."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or any(words in str(error).lower() for words in OUT_OF_MEMORY))


def serve(name: str, request: LoadRequest) -> None:
    """Load, say so, then answer {"do": "prefill", "ids": [...]} and {"do": "decode", "count": n} until stdin ends.

    Importing the engine's library is not part of the load time.
    """
    importlib.import_module(ENGINES[name].module)
    started = time.perf_counter()
    engine = ENGINES[name](request)
    load_s = time.perf_counter() - started
    versions = {package: _version(package) for package in ENGINES[name].packages} | getattr(engine, "versions", {})
    _reply({"load_s": load_s, "versions": versions, "engine_sha256": getattr(engine, "engine_sha256", None)})
    for line in sys.stdin:
        work = json.loads(line)
        if work["do"] == "prefill":
            engine.reset()
        began_ns, cpu = time.monotonic_ns(), time.process_time()
        steps_s = []
        if work["do"] == "prefill":
            engine.prefill(work["ids"])
        else:
            steps_s = _timed_steps(engine, work["count"])
        ended_ns, cpu = time.monotonic_ns(), time.process_time() - cpu
        _reply({"wall_s": (ended_ns - began_ns) / 1e9, "cpu_s": cpu, "span_ns": [began_ns, ended_ns],
                "steps_s": steps_s, "peak_rss_bytes": _peak_rss_bytes()})


def _timed_steps(engine: BenchEngine, count: int) -> list[float]:
    ends = [time.perf_counter()]
    for _ in range(count):
        engine.step()
        ends.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(ends)]


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
    del sys.path[0]  # this file's folder, whose modules are no packages of anyone
    sys.exit(main(sys.argv[1], LoadRequest(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5],
                                           json.loads(sys.argv[6]))))
