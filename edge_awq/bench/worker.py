"""An engine in its own process, as the benchmarks see it: its samples, and how it ended if it did."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_awq.errors import EdgeAwqError

ENGINES = Path(__file__).with_name("engines.py")


class EngineEnded(EdgeAwqError):
    """The engine's process failed; ``oom``: for want of memory."""

    def __init__(self, message: str, oom: bool) -> None:
        super().__init__(message, hint="measure a smaller context, or leave this engine out")
        self.oom = oom


@dataclass(frozen=True)
class Sample:
    """``tokens`` processed in one go.

    Attributes:
        cpu_s: the time of all threads of the engine's process.
        steps_s: of every decode step.
        span_ns: from where to where it took, CLOCK_MONOTONIC.
    """

    tokens: int
    wall_s: float
    cpu_s: float
    steps_s: tuple[float, ...] = ()
    span_ns: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Candidate:
    """An engine that can run here.

    Attributes:
        name: in engines.py.
        python: the interpreter that has its library.
        options: what else it is to load its model with.
    """

    name: str
    model: Path
    python: str = sys.executable
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)


class Worker:
    """One engine in its own process (engines.py).

    Attributes:
        load_s: seconds until it was ready; versions: of the engine's packages; engine_sha256: of the file that it runs.
        peak_rss_bytes: the most memory that the process has had resident so far.

    Raises:
        EngineEnded: in every method, when the process is gone.
    """

    def __init__(self, candidate: Candidate, threads: int, context: int) -> None:
        command = [candidate.python, ENGINES, candidate.name, candidate.model, threads, context, candidate.device,
                   json.dumps(dict(candidate.options))]
        self._name = candidate.name
        self._oom_kills = oom_kills()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed by close
        self._process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._errors, text=True)
        try:
            started = self._answer()
        except BaseException:
            self.close()
            raise
        self.load_s: float = started["load_s"]
        self.versions: dict[str, str | None] = started["versions"]
        self.engine_sha256: str | None = started.get("engine_sha256")
        self.peak_rss_bytes = 0

    def prefill(self, ids: list[int]) -> Sample:
        """Empty the cache and run a prompt."""
        return self._run({"do": "prefill", "ids": ids}, len(ids))

    def decode(self, count: int) -> Sample:
        """Run that many steps."""
        return self._run({"do": "decode", "count": count}, count)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: dict[str, Any], tokens: int) -> Sample:
        with contextlib.suppress(BrokenPipeError):  # the answer says how it ended
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        return Sample(tokens, answer["wall_s"], answer["cpu_s"], tuple(answer["steps_s"]), tuple(answer["span_ns"]))

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if not line.startswith("{"):  # a library may have said something of its own
                continue
            answer = json.loads(line)
            if "oom" in answer:
                raise EngineEnded(f"{self._name}: {answer['oom']}", oom=True)
            return answer
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        raise EngineEnded(f"{self._name}: {describe_end(code, said[-1] if said else None)}",
                          oom=code == -signal.SIGKILL and oom_kills() > self._oom_kills)


def describe_end(code: int, said: str | None = None) -> str:
    """How a process ended, in words; ``said``: the last line of its standard error."""
    if code < 0:
        return f"the engine was ended by {signal.Signals(-code).name}"
    return f"the engine ended with code {code}{f' ({said})' if said else ''}"


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed for want of memory, as far as it tells: on the machine and in the
    control group. A SIGKILL is such a kill only where this count has risen; anyone may send one.
    """
    counts = 0
    for place in ("proc/vmstat", "sys/fs/cgroup/memory.events"):
        try:
            text = (root / place).read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        counts += sum(map(int, re.findall(r"^oom_kill (\d+)$", text, re.MULTILINE)))
    return counts
