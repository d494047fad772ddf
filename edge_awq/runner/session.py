"""The Python API: load a bundle, feed it tokens or text, read logits or an answer.

    with load("tinyllama.bundle") as session:
        logits = session.prefill(session.encode("The capital of France is"))  # float32 [vocab_size]
        for token in session.generate("The capital of France is", max_tokens=32):
            ...  # token.text, token.t_s
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge_awq.bundle import ENGINES, MANIFEST, Bundle, Manifest, hash_file
from edge_awq.engine import CPU_RUNTIMES, load_runtime
from edge_awq.engine.base import Engine
from edge_awq.errors import EdgeAwqError
from edge_awq.power.monitor import Monitor
from edge_awq.progress import Progress
from edge_awq.runner.energy import RequestEnergy
from edge_awq.runner.generate import GenerationSettings, Start, Token, generate
from edge_awq.runner.lookup import LookupEngine
from edge_awq.runner.metrics import RunSummary, summarize, weight_bytes_per_token
from edge_awq.runner.prefix import PrefixEngine
from edge_awq.runner.runlog import RunLog
from edge_awq.runner.sampling import SamplingSettings, check_setting
from edge_awq.runner.structure import ANY_OBJECT, Structure, Structures
from edge_awq.runner.tool_grammar import begin_answer
from edge_awq.runner.tool_prompt import ToolPrompt
from edge_awq.runner.tool_stream import split_calls
from edge_awq.runner.vocabulary import Vocabulary, read_vocabulary
from edge_awq.target import find_target
from edge_awq.weights import read_layout

_QUANT = ("recipe", "group_size", "symmetric", "head_bits")  # of the manifest's; it may also name the user's files
_FILTERS = {"top_k", "top_p", "min_p"}  # asking for one of these is asking for sampling


@dataclass(frozen=True)
class Loaded:
    """How a session came to be.

    Attributes:
        started_ns: when loading began, CLOCK_MONOTONIC.
        load_s: seconds until the engine was ready.
        threads: CPU threads that were asked for, None for the engine's own choice.
        weight_bytes_per_token: see edge_awq.runner.metrics.
        manifest_sha256: names the bundle, as the manifest holds the hash of every other file.
        engine: what the engine says of itself, see edge_awq.engine.base.Engine.
    """

    manifest: Manifest
    started_ns: int
    load_s: float
    threads: int | None
    weight_bytes_per_token: int
    manifest_sha256: str
    engine: Mapping[str, Any]


def load(bundle_path: Path | str, threads: int | None = None, context: int | None = None,
         progress: Progress | None = None, lookup: int = 0, plugin_free: bool = False, **options: Any) -> Session:
    """Open a bundle for running, after checking the hash of every file in it.

    Args:
        threads: CPU threads; None takes one per physical core.
        context: tokens in the KV cache; None takes the bundle's limit.
        progress: is told about an engine that must be compiled first; None compiles in silence.
        lookup: tokens to guess by prompt lookup and run beside one, see edge_awq.runner.lookup; 0 guesses none.
        plugin_free: run a symmetric bundle for GPUs by TensorRT's own int4 instead of edge-awq's plugins.
        options: on GPUs only: ``kv_bits`` of a cached key or value, 16 or 8; None takes 16.

    Raises:
        EdgeAwqError: not a bundle, damaged, or it cannot run here or with these values.
    """
    started_ns = time.monotonic_ns()
    check_setting("lookup", lookup, Integral, lambda value: value >= 0, "0 for none, or a few tokens")
    bundle = Bundle.open(bundle_path)
    bundle.check_contract()
    manifest = bundle.manifest
    vocabulary = read_vocabulary(bundle.path)
    weight_bytes = weight_bytes_per_token(read_layout(bundle.weights))
    runtime = load_runtime(manifest.runtime, plugin_free)
    engine = runtime.open_engine(bundle, threads, context, progress, **options)
    load_s = (time.monotonic_ns() - started_ns) / 1e9
    loaded = Loaded(manifest, started_ns, load_s, threads, weight_bytes, hash_file(bundle.path / MANIFEST),
                    getattr(engine, "provenance", {}))
    return Session(LookupEngine(engine, lookup) if lookup else engine, vocabulary, loaded)


def measuring_device(bundle_path: Path | str) -> str:
    """Whether the processor, "cpu", or a GPU, "gpu", does a bundle's work: what a meter is chosen for.

    Raises:
        EdgeAwqError: not a bundle.
    """
    return "cpu" if Bundle.open(bundle_path, verify=False).manifest.runtime in CPU_RUNTIMES else "gpu"


class Session:
    """A loaded model with one KV cache, for one thread of the caller at a time.

    Attributes:
        engine: runs the model; ``engine.length`` of ``engine.context`` tokens are in its cache.
        reused_tokens: tokens of the last prompt that were in the cache already.
        vocabulary: tokenizer, special tokens and chat template.
        loaded: the manifest, and what loading took.
    """

    def __init__(self, engine: Engine, vocabulary: Vocabulary, loaded: Loaded) -> None:
        self._engine: PrefixEngine | None = PrefixEngine(engine)
        self.vocabulary = vocabulary
        self.loaded = loaded
        self.reused_tokens = self._prompt_tokens = 0
        self._logged = False
        self._structures: Structures | None = None

    @property
    def engine(self) -> PrefixEngine:
        """The engine.

        Raises:
            EdgeAwqError: the session is closed.
        """
        if self._engine is None:
            raise EdgeAwqError("this session is closed", hint="load the bundle again")
        return self._engine

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, begun as the model expects it."""
        return self.vocabulary.encode(text)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation, up to where the answer begins; ``options`` as in ChatTemplate.render.

        Raises:
            EdgeAwqError: the model has no chat template, it fails on these messages, or it does not use tools.
        """
        return self._tools.encode(messages, **options)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens have none."""
        return self.vocabulary.decode(ids)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append tokens (at least one) to the cache.

        Returns:
            Logits [vocab_size] float32 of the token that follows; the next call may overwrite them.
        """
        return self.engine.prefill(ids)

    def step(self, token_id: int) -> np.ndarray:
        """Append one token to the cache; returns logits [vocab_size] float32, which the next call may overwrite."""
        return self.engine.step(token_id)

    def reset(self) -> None:
        """Empty the cache."""
        self.engine.truncate(0)

    def settings(self, **changes: Any) -> GenerationSettings:
        """What the model's generation_config.json asks for, with some of it changed.

        Args:
            changes: fields of GenerationSettings and of SamplingSettings, such as max_tokens, stop, temperature, seed.

        Raises:
            EdgeAwqError: an unknown field, or a value that is not possible.
        """
        sampling_fields = {entry.name for entry in fields(SamplingSettings)}
        known = sampling_fields | {entry.name for entry in fields(GenerationSettings)} - {"sampling"}
        if unknown := sorted(set(changes) - known):
            raise EdgeAwqError(f"setting '{unknown[0]}' is not known", hint=f"known: {', '.join(sorted(known))}")
        sampled = {name: changes.pop(name) for name in sampling_fields & set(changes)}
        if self.vocabulary.sampling.temperature == 0 and _FILTERS & set(sampled):
            sampled.setdefault("temperature", SamplingSettings.temperature)
        if isinstance(changes.get("stop"), list):
            changes["stop"] = tuple(changes["stop"])
        values = {"eos_ids": self.vocabulary.eos_ids, "bos_id": self.vocabulary.bos_id, **changes}
        return GenerationSettings(**values, sampling=dataclasses.replace(self.vocabulary.sampling, **sampled))

    def generate(
        self, prompt: str | Sequence[int], settings: GenerationSettings | None = None, **changes: Any
    ) -> Iterator[Token]:
        """Answer a prompt, one Token record after another.

        The cache holds the prompt and its answer afterwards, and nothing from before. What prompt and cache have in
        common from the start on, such as the turns of a chat so far, is not run again; the tokens are the same.

        Args:
            prompt: text, or token ids as they are.
            settings: None for those of ``self.settings(**changes)``.

        Raises:
            EdgeAwqError: at once, for a prompt that is empty or too long, or a setting that is not possible.
        """
        settings = settings or self.settings(**changes)
        tokenizer = self.vocabulary.tokenizer
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        calls = settings.tools and begin_answer(self._tools.form, settings.tools, tokenizer, ids, self._form_maker)
        start = Start(0, calls.structure, calls.spelled) if calls else Start(0, self._structure(settings))
        self.reused_tokens, self._prompt_tokens = self.engine.keep(ids), max(len(ids), 1)  # none: the begin token
        tokens = generate(self.engine, tokenizer, ids, settings,
                          start=dataclasses.replace(start, reused=self.reused_tokens))
        return split_calls(tokens, calls.splitter) if calls else tokens

    def chat(
        self, messages: Sequence[Mapping[str, Any]], settings: GenerationSettings | None = None, **changes: Any
    ) -> Iterator[Token]:
        """Answer a conversation; see ``generate``. The turns that it answered already are not run again.

        Args:
            messages: each with "role" and "content", oldest first; with the setting ``tools`` also "tool_calls", and
                "tool_call_id" of results, as OpenAI's API has them.
        """
        settings = settings or self.settings(**changes)
        return self.generate(self.encode_chat(messages, tools=settings.tools and settings.tools.tools), settings)

    def summarize(self, tokens: Sequence[Token], energy: RequestEnergy | None = None) -> RunSummary:
        """The numbers of the answer that ``generate`` or ``chat`` gave last; ``tokens`` are all of its records."""
        return summarize(tokens, self._prompt_tokens, self.loaded.load_s, self.loaded.weight_bytes_per_token,
                         energy.to_dict() if energy else None, self.reused_tokens)

    def guesses(self) -> tuple[int, int] | None:
        """Tokens that prompt lookup guessed so far, and those of them that were right; None without it."""
        inner = self.engine.engine
        return (inner.guessed, inner.right) if isinstance(inner, LookupEngine) else None

    def memory_bandwidth_gb_s(self) -> float | None:
        """Of the memory that the weights are read from, by the target's profile; None: not known."""
        try:
            target = find_target(self.loaded.manifest.target)
        except EdgeAwqError:
            return None  # a profile of the workstation's own
        return getattr(getattr(target, "device", None), "bandwidth_gb_s", None)

    def open_log(self, folder: Path, settings: GenerationSettings, meter: Monitor | None = None) -> RunLog:
        """Begin a run log in ``folder``. Its ``record`` goes around the stream.

        A session's first log begins with loading, as its first phase; any later one begins now.

        Args:
            meter: started by the caller, who also stops it; None measures no power.
        """
        if meter is not None:
            meter.ready()
        first, self._logged = not self._logged, True
        run_log = RunLog(folder, self._describe(settings), self.loaded.started_ns if first else None, meter=meter)
        if first:
            run_log.phase("load", (0, round(self.loaded.load_s * 1e9)))
        if first and meter is not None and meter.idle_span is not None:
            start_ns, end_ns = meter.idle_span
            run_log.phase("idle", (start_ns - self.loaded.started_ns, end_ns - self.loaded.started_ns))
        if meter is None:
            run_log.warn("no_power_source", "nothing measures power here; every energy value is null")
        return run_log

    def provenance(self) -> dict[str, Any]:
        """What is run and by what: "model" and "engine", as run logs have them."""
        manifest = self.loaded.manifest
        return {
            "model": {
                "name": manifest.name, "revision": manifest.revision, "family": manifest.family,
                "precision": manifest.precision, "quant": {key: manifest.quant.get(key) for key in _QUANT},
                "fingerprint": manifest.fingerprint, "weight_bytes_per_token": self.loaded.weight_bytes_per_token,
                "bundle_sha256": self.loaded.manifest_sha256,
            },
            "engine": {"runtime": manifest.runtime, "target": manifest.target, "context": self.engine.context,
                       "contract_version": manifest.contract_version, "compiled": manifest.engine,
                       "sha256": {name: entry["sha256"] for name, entry in manifest.files.items()
                                  if name.startswith(f"{ENGINES}/")},
                       **dict.fromkeys(("file", "runtime_version", "passes", "kv_bits")), **self.loaded.engine},
        }

    @functools.cached_property
    def _tools(self) -> ToolPrompt:
        return ToolPrompt(self.vocabulary, self.loaded.manifest.name)

    def _form_maker(self) -> Structures:
        if self._structures is None:
            self._structures = Structures(self.vocabulary, self.engine.vocab_size)
        return self._structures

    def _structure(self, settings: GenerationSettings) -> Structure | None:
        if not settings.has_form:
            return None
        if settings.regex is not None:
            return self._form_maker().of_regex(settings.regex)
        return self._form_maker().of_schema(ANY_OBJECT if settings.json_schema is True else settings.json_schema)

    def _describe(self, settings: GenerationSettings) -> dict[str, Any]:
        return {
            **self.provenance(),
            "sampling": dataclasses.asdict(settings.sampling),
            "settings": {"threads": self.loaded.threads, "max_tokens": settings.max_tokens,
                         "ignore_eos": settings.ignore_eos, "stop_strings": len(settings.stop),
                         "has_form": settings.has_form},
        }

    def close(self) -> None:
        """Release the model's memory; the session cannot be used afterwards. A second time does nothing."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
