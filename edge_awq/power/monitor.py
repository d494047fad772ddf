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

_KEPT = 16  # samples that stay when the others are let go
_STOP_S = 2.0  # from closing the sampler's input to killing it
_HANGS = "a service that hangs does this: 'sudo systemctl restart jtop', or choose another meter"
_OTHER = "choose another meter, or --meter none"
NOTE, SLOWER, SKIPPED = "meter_note", "interval_slower", "meter_skipped"


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
        idle_w: mean power of the last ``measure_idle``; None: not measured. idle_span: when that was.
    """

    def __init__(self, choice: MeterChoice, names: Sequence[str]) -> None:
        self.choice = choice
        self.source: Source | None = None
        self.idle_w: float | None = None
        self.idle_span: Span | None = None
        self._refusals: list[tuple[str, str | None]] = []
        self._warnings: list[tuple[str, str]] = []
        self._readings: list[Reading] = []
        self._listeners: list[Callable[[Reading], None]] = []
        self._changed = threading.Condition()
        self._started = self._ended = self._closing = self._resting = False
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
            if self.source is None and self.asked_for:
                raise EdgeAwqError(*self._refusals[0])
            return self.source

    @property
    def asked_for(self) -> bool:
        """Whether a certain meter was asked for, so that none is an error."""
        return self.choice.name not in (AUTO, NONE)

    @property
    def warnings(self) -> tuple[tuple[str, str], ...]:
        """Code and text of everything that a reader of the numbers should know, so far."""
        with self._changed:
            return tuple(self._warnings)

    @property
    def refusal(self) -> str | None:
        """Why nothing is measured although a meter was looked for: what the best one said; None otherwise."""
        return self._refusals[0][0] if self.source is None and self._refusals else None

    @property
    def latest(self) -> Reading | None:
        """The newest sample."""
        readings = self._readings
        return readings[-1] if readings else None

    def readings(self) -> list[Reading]:
        """Every sample so far, but for those that were let go."""
        with self._changed:
            return list(self._readings)

    def forget(self) -> None:
        """Let go of all but the newest samples, those that the next phase may begin between, until ``follow``."""
        with self._changed:
            self._resting = True
            del self._readings[:-_KEPT]

    def follow(self) -> None:
        """Keep every sample from now on, as from the start."""
        with self._changed:
            self._resting = False

    def listen(self, listener: Callable[[Reading], None]) -> None:
        """Call ``listener`` with every sample, those that are there already first; from the meter's own thread."""
        with self._changed:
            for reading in self._readings:
                listener(reading)
            self._listeners.append(listener)

    def ignore(self, listener: Callable[[Reading], None]) -> None:
        """No more calls once this returns."""
        with self._changed:
            self._listeners.remove(listener)

    def measure_idle(self, seconds: float) -> float | None:
        """Do nothing for so long, after everything is loaded; returns and keeps the mean watts, None: not measured."""
        self.ready()
        started_ns = time.monotonic_ns()
        time.sleep(seconds)
        self.idle_span = (started_ns, time.monotonic_ns())
        self.idle_w = self.energy([self.idle_span]).mean_w
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
        left = names
        while left and self.source is None and not self._closing:
            left = self._run(left)
        with self._changed:
            if self.source is None and not self._closing:
                texts = [f"{message} ({hint})" for message, hint in self._refusals] or ["no meter was asked for"]
                self._warnings += [(SKIPPED, text) for text in texts[:-1]] + [(NO_SOURCE, texts[-1])]
            self._started = self._ended = True
            self._changed.notify_all()

    def _run(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """One sampling process from start to end; returns the meters that are left to try when it hung or died."""
        with tempfile.TemporaryFile() as errors:
            with self._changed:
                if self._closing:
                    return ()
                try:
                    self._process = process = _spawn(names, self.choice, errors)
                except OSError as error:
                    self._refusals.append((f"{names[0]}: the sampling process did not start ({error})", _OTHER))
                    return ()
            # A service that hangs is waited for inside, where nothing could interrupt it.
            deadline = threading.Timer(self.choice.start_s, process.kill)
            deadline.start()
            tried, last = names[0], ""
            for line in process.stdout:
                kind, value = _parse(line)
                last = kind or last
                if kind == "trying":
                    tried = value
                elif kind == "refused":
                    self._refusals.append(tuple(value))
                elif kind == "source":
                    self._begin(Source.from_json(value))
                elif kind == "reading":
                    deadline.cancel()
                    self._take(Reading.from_json(value))
                elif kind == "lost":
                    self._lose(value)
            deadline.cancel()
            process.stdout.close()
            process.wait()
            if last not in ("refused", "lost") and not self._closing:
                self._died(tried, process, errors)
        return names[names.index(tried) + 1 :]

    def _died(self, name: str, process: subprocess.Popen, errors: IO[bytes]) -> None:
        """A sampling process ended without a word."""
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {process.returncode}"
        text = f"{name}: the sampling process ended ({reason})"
        if self.source is not None:
            self._lose(f"{name}: the sampling process was killed" if process.returncode < 0 else text)
        elif process.returncode == -signal.SIGKILL:
            self._refusals.append((f"{name}: no answer within {self.choice.start_s:g} s", _HANGS))
        else:
            self._refusals.append((text, _OTHER))

    def _lose(self, message: str) -> None:
        with self._changed:
            self._warnings.append((LOST, f"{message}; phases that were not seen to their end have no energy"))

    def _begin(self, source: Source) -> None:
        with self._changed:
            self.source = source
            self._warnings += [(SKIPPED, message) for message, _ in self._refusals]
            self._warnings += [(NOTE, f"{source.backend}: {note}") for note in source.notes]
            if source.interval_s > 1.05 * self.choice.interval_s:
                self._warnings.append((SLOWER, f"{source.backend}: a sample every {source.interval_s:g} s, "
                                               f"{self.choice.interval_s:g} s were asked for"))

    def _take(self, reading: Reading) -> None:
        with self._changed:
            self._readings.append(reading)
            if self._resting:
                del self._readings[:-_KEPT]
            self._started = True  # from here on a phase has a sample before it
            for listener in self._listeners:
                listener(reading)
            self._changed.notify_all()


def _spawn(names: Sequence[str], choice: MeterChoice, errors: IO[bytes]) -> subprocess.Popen:
    """The sampling process, in a session of its own, so that Ctrl-C does not reach it."""
    package_parent = str(Path(edge_awq.__file__).resolve().parent.parent)
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = json.dumps(dataclasses.asdict(choice))
    command = [choice.python or sys.executable, "-m", "edge_awq.power.sampler", ",".join(names), wanted]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True)


def _stop(process: subprocess.Popen) -> None:
    process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _parse(line: str) -> tuple[str | None, Any]:
    """Kind and value of a message; a line that a kill cut off is none."""
    try:
        ((kind, value),) = json.loads(line).items()
    except json.JSONDecodeError:
        return None, None
    return kind, value
