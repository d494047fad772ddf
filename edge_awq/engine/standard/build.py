"""Building an engine of a plugin-free graph, in a process of its own: a builder that aborts ends only that process.

No engine of this kind has run on a device yet.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_awq.engine.standard.runtimes import Runtime
from edge_awq.errors import EdgeAwqError
from edge_awq.progress import Advance


@dataclass(frozen=True)
class Profile:
    """Calls that an engine is optimized for: of one token to ``most_tokens``, mostly ``usual_tokens``."""

    usual_tokens: int
    most_tokens: int
    most_logits: int


@dataclass(frozen=True)
class EngineReport:
    """How an engine was built; ``layers`` counts the network's layers by type, before the builder fused them."""

    runtime: str
    runtime_version: str
    engine_bytes: int
    build_s: float
    peak_host_bytes: int
    layers: dict[str, int]


def build_engine(graph: Path, engine: Path, profiles: Sequence[Profile], runtime: Runtime,
                 advance: Advance = lambda units: None) -> EngineReport:
    """Build the engine of the graph that ``write`` wrote, with these optimization profiles, into the file ``engine``.

    Args:
        advance: hears of edge_awq.engine.trt.build_progress.UNITS units in all.

    Raises:
        EdgeAwqError: the runtime is missing or too old, or refuses the graph; its own words are in the message.
    """
    wanted = json.dumps([dataclasses.asdict(profile) for profile in profiles])
    command = [sys.executable, "-m", "edge_awq.engine.standard.builder", runtime.name, str(graph), str(engine), wanted]
    answer: dict = {}
    with tempfile.TemporaryFile("w+") as errors:
        with _running(command, errors) as process:
            for line in process.stdout:
                if line.startswith("{"):  # a builder may say something itself
                    answer = json.loads(line)
                    advance(answer.get("advance", 0))
        errors.seek(0)
        if process.returncode != 0 or "advance" in answer or not answer:
            raise EdgeAwqError(f"{graph}: {runtime.name} ended {_how(process.returncode)} while it built: "
                               f"{_last(errors.read())}",
                               hint="use another version of it, or the engines with edge-awq's plugins")
    if "error" in answer:
        raise EdgeAwqError(answer["error"], hint=answer["hint"])
    return EngineReport(**answer)


@contextmanager
def _running(command: Sequence[str], errors: IO[str]) -> Iterator[subprocess.Popen]:
    """The process, which ends with the block: by itself, or killed where that is left by an exception, as on Ctrl-C."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _last(text: str) -> str:
    return text.splitlines()[-1] if text.strip() else "(it said nothing)"
