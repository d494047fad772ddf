"""Building an engine of a plugin-free graph, in a process of its own: a builder that aborts ends only that process.

TensorRT-RTX builds without a GPU, for all that it knows; TensorRT from 10.15 on needs the GPU that will run the engine.
No engine of this kind has run on a device yet.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edge_awq.errors import EdgeAwqError

# Runtime -> (Python module, extra of edge-awq that brings it, first version that knows every op of the lowering).
BUILDERS = {
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "rtx", (1, 7)),
    "tensorrt": ("tensorrt", "trt", (10, 15)),
}


@dataclass(frozen=True)
class EngineReport:
    """How an engine was built; ``layers`` counts the network's layers by type, before the builder fused them."""

    runtime: str
    runtime_version: str
    engine_bytes: int
    build_s: float
    layers: dict[str, int]


def build_engine(graph: Path, engine: Path, most_tokens: int, runtime: str = "tensorrt-rtx") -> EngineReport:
    """Build the engine of the graph that ``write`` wrote, for calls of 1 to ``most_tokens`` tokens, into ``engine``.

    Raises:
        EdgeAwqError: the runtime is missing or too old, or refuses the graph; its own words are in the message.
    """
    if runtime not in BUILDERS:
        raise EdgeAwqError(f"no plugin-free engine for the runtime '{runtime}'", hint=f"known: {', '.join(BUILDERS)}")
    command = [sys.executable, "-m", "edge_awq.engine.standard.builder", runtime, graph, engine, str(most_tokens)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise EdgeAwqError(f"{graph}: {runtime} ended {_how(done.returncode)} while it built: {_last(done.stderr)}",
                           hint="use another version of it, or the engines with edge-awq's plugins")
    answer = json.loads(_last(done.stdout))
    if "error" in answer:
        raise EdgeAwqError(answer["error"], hint=answer["hint"])
    return EngineReport(**answer)


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _last(text: str) -> str:
    return text.splitlines()[-1] if text.strip() else "(it said nothing)"
