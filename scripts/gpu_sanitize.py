"""The kernels' tests under NVIDIA's compute-sanitizer, on small shapes: the CUDA toolkit brings it, no driver does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
NAME, TOOLKIT = "compute-sanitizer", "/usr/local/cuda/bin"
ERRORS_FOUND = 86  # the exit status that is asked for; the tests have others
SUMMARY = re.compile(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) .*$", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """What one tool said.

    Attributes:
        status: "clean", "errors", "failed" (the tests or the tool), "unfinished" (out of time) or "skipped".
        note: its own summary, or why there is none.
        seconds: what it took; None if it did not run.
    """

    tool: str
    status: str
    note: str
    seconds: float | None = None

    @property
    def is_bad(self) -> bool:
        """Whether a check of the device failed."""
        return self.status in ("errors", "failed")


def find_sanitizer() -> str | None:
    """On the PATH, or in the CUDA toolkit's usual place."""
    return shutil.which(NAME) or shutil.which(NAME, path=TOOLKIT)


def sanitize(command: Sequence[object], environment: dict[str, str], seconds: float) -> list[Finding]:
    """Run ``command`` under each tool, for at most so many seconds each; 0 runs none."""
    sanitizer = find_sanitizer()
    reason = f"no {NAME} on the PATH or in {TOOLKIT}" if sanitizer is None else "not asked for"
    if sanitizer is None or seconds <= 0:
        return [Finding(tool, "skipped", reason) for tool in TOOLS]
    return [_run(sanitizer, tool, command, environment, seconds) for tool in TOOLS]


def _run(sanitizer: str, tool: str, command: Sequence[object], environment: dict[str, str], seconds: float) -> Finding:
    started = time.monotonic()
    options = ["--tool", tool, "--error-exitcode", str(ERRORS_FOUND), "--target-processes", "all"]
    with subprocess.Popen([sanitizer, *options, *map(str, command)], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Finding(tool, "unfinished", f"stopped after {seconds:g} s", round(time.monotonic() - started, 1))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Finding(tool, *_judge(process.returncode, output), round(time.monotonic() - started, 1))


def _judge(returncode: int, output: str) -> tuple[str, str]:
    """(status, note): clean only where the tool itself says so."""
    summaries = list(SUMMARY.finditer(output))
    note = summaries[-1][0].strip("= ") if summaries else (output.strip().splitlines() or ["no output"])[-1]
    if returncode == ERRORS_FOUND or any(int(each[1]) for each in summaries):
        return "errors", note
    if returncode or not summaries:
        return "failed", f"exit status {returncode}: {note}"
    return "clean", note
