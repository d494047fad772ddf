"""A meter as its user sees it: starts the sampling process, keeps the samples, answers about phases."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import edge_awq
from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import AUTO, NONE, MeterChoice, Reading, Source
from edge_awq.power.choose import candidates
from edge_awq.power.energy import LOST, NO_SOURCE, PhaseEnergy, Span, hole_s, phase_energy

_STOP_S = 2.0  # from closing the sampler's input to killing it
SLOWER = "interval_slower"


def start_meter(choice: MeterChoice | None = None) -> Monitor:
    """Begin to measure; returns at once, while the meter starts beside what the caller does next.

    Raises:
        EdgeAwqError: the meter's name is not known, or its interval is not possible.
    """
    choice = choice or MeterChoice()
    if not 0 < choice.interval_s <= 60:
        raise EdgeAwqError(f"meter interval = {choice.interval_s:g} s is not possible", hint="use 0.01 to 60 seconds")
    return Monitor(choice, candidates(choice))


class Monitor:
    """A meter at work. All methods may be called from any thread.

    Attributes:
        choice: what was asked for.
        source: what is measured; None before ``ready`` and without a meter.
        idle_w: mean power of the last ``measure_idle``; None: not measured.
    """

    def __init__(self, choice: MeterChoice, names: Sequence[str]) -> None:
        self.choice = choice
        self.source: Source | None = None
        self.idle_w: float | None = None
        self._refusals: list[tuple[str, str | None]] = []
        self._warnings: list[tuple[str, str]] = []
        self._readings: list[Reading] = []
        self._listeners: list[Callable[[Reading], None]] = []
        self._changed = threading.Condition()
        self._started = self._ended = self._closing = False
        self._process: subprocess.Popen | None = None
        self._thread = threading.Thread(target=self._work, args=(tuple(names),), daemon=True, name="power meter")
        self._thread.start()

    def ready(self) -> Source | None:
        """Wait until the meter measures, or none does; see ``warnings`` for why.

        Raises:
            EdgeAwqError: a meter that was asked for by name cannot measure.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._started)
            if self.source is None and self.choice.name not in (AUTO, NONE):
                raise EdgeAwqError(*self._refusals[0])
            return self.source

    @property
    def warnings(self) -> tuple[tuple[str, str], ...]:
        """Code and text of everything that a reader of the numbers should know, so far."""
        with self._changed:
            return tuple(self._warnings)

    @property
    def latest(self) -> Reading | None:
        """The newest sample."""
        readings = self._readings
        return readings[-1] if readings else None

    def readings(self) -> list[Reading]:
        """Every sample so far."""
        with self._changed:
            return list(self._readings)

    def listen(self, listener: Callable[[Reading], None]) -> None:
        """Call ``listener`` with every sample, those that are there already first; from the meter's own thread."""
        with self._changed:
            for reading in self._readings:
                listener(reading)
            self._listeners.append(listener)

    def measure_idle(self, seconds: float) -> float | None:
        """Do nothing for so long, after everything is loaded; returns and keeps the mean watts, None: not measured."""
        self.ready()
        started_ns = time.monotonic_ns()
        time.sleep(seconds)
        self.idle_w = self.energy([(started_ns, time.monotonic_ns())]).mean_w
        return self.idle_w

    def energy(self, spans: Sequence[Span]) -> PhaseEnergy:
        """The energy of a phase, or of all its repetitions together, once the samples around it are there."""
        source = self.source
        if source is None:
            return PhaseEnergy(problem=NO_SOURCE)
        self._wait_past(max((end for _, end in spans), default=0), hole_s(source))
        return phase_energy(source, self.readings(), spans, self.idle_w)

    def close(self) -> None:
        """Stop sampling; what was measured can still be asked for."""
        with self._changed:
            self._closing = True
            process = self._process
        if process is not None:
            _stop(process)
        self._thread.join()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_past(self, t_ns: int, timeout_s: float) -> None:
        """Until a whole sample is at or after ``t_ns``, or none can come any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or any(reading.t_ns >= t_ns and self.source.total_w(reading) is not None
                                           for reading in self._readings[-8:]), timeout_s)

    def _work(self, names: tuple[str, ...]) -> None:
        """The thread: try one meter after the other, then take in samples until the end."""
        for name in names:
            refusal = self._run(name)
            if refusal is None or self._closing:
                break
            self._refusals.append(refusal)
            if self.choice.name == AUTO:
                self._warn(NO_SOURCE if name == names[-1] else "meter_skipped", refusal[0])
        with self._changed:
            if not names and self.choice.name == NONE:
                self._warnings.append((NO_SOURCE, "no meter was asked for; every energy value is null"))
            self._started = self._ended = True
            self._changed.notify_all()

    def _run(self, name: str) -> tuple[str, str | None] | None:
        """One sampling process from start to end; what kept it from measuring, None when it did measure."""
        with tempfile.TemporaryFile() as errors:
            with self._changed:
                if self._closing:
                    return None
                self._process = process = _spawn(name, self.choice, errors)
            deadline = threading.Timer(self.choice.start_s, process.kill)  # a hanging service is waited for inside
            deadline.start()
            message: dict[str, Any] = {}
            for line in process.stdout:
                message = _parse(line)
                if "source" in message:
                    self._begin(Source.from_json(message["source"]))
                elif "reading" in message:
                    deadline.cancel()
                    self._take(Reading.from_json(message["reading"]))
            deadline.cancel()
            process.stdout.close()
            process.wait()
            refusal = tuple(message["error"]) if "error" in message else self._death(name, process, errors)
        if self.source is None:
            return refusal
        if not self._closing:
            self._warn(LOST, f"{refusal[0]}; phases that it did not see to their end have no energy")
        return None

    def _death(self, name: str, process: subprocess.Popen, errors: IO[bytes]) -> tuple[str, str | None]:
        """Why a sampling process ended without a word."""
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        if process.returncode == -signal.SIGKILL:
            if self.source is not None:
                return f"{name}: the sampling process was killed", None
            return (f"{name}: no answer within {self.choice.start_s:g} s",
                    "a service that hangs does this: 'sudo systemctl restart jtop', or choose another meter")
        reason = lines[-1] if lines else f"exit code {process.returncode}"
        return f"{name}: the sampling process ended ({reason})", "choose another meter"

    def _begin(self, source: Source) -> None:
        with self._changed:
            self.source = source
            self._warnings += [("meter_note", f"{source.backend}: {note}") for note in source.notes]
            if source.interval_s > 1.05 * self.choice.interval_s:
                self._warnings.append((SLOWER, f"{source.backend}: a sample every {source.interval_s:g} s, "
                                               f"{self.choice.interval_s:g} s were asked for"))

    def _take(self, reading: Reading) -> None:
        with self._changed:
            self._readings.append(reading)
            self._started = True  # from here on a phase has a sample before it
            for listener in self._listeners:
                listener(reading)
            self._changed.notify_all()

    def _warn(self, code: str, text: str) -> None:
        with self._changed:
            self._warnings.append((code, text))


def _spawn(name: str, choice: MeterChoice, errors: IO[bytes]) -> subprocess.Popen:
    """The sampling process, in a session of its own, so that Ctrl-C does not reach it."""
    package_parent = str(Path(edge_awq.__file__).resolve().parent.parent)
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = json.dumps(dataclasses.asdict(choice))
    command = [choice.python or sys.executable, "-m", "edge_awq.power.sampler", name, wanted]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True)


def _stop(process: subprocess.Popen) -> None:
    process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _parse(line: str) -> dict[str, Any]:
    """A message; a line that a kill cut off is none."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}
