"""How far a build is, and how it is stopped: TensorRT reports nested phases of steps, and asks whether to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

from edge_awq.progress import Advance
from edge_awq.signals import ENDINGS

UNITS = 1000  # of a build's progress bar


class Phases:
    """Nested phases as one share of the whole; a phase inside another makes up the step that the outer one is at."""

    def __init__(self) -> None:
        self._open: dict[str, list[Any]] = {}  # name -> [parent, steps, steps done]

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` begins."""
        self._open[name] = [parent, max(steps, 1), 0]

    def step(self, name: str, step: int) -> None:
        """Step number ``step``, from 0 on, of a phase is done."""
        if name in self._open:
            self._open[name][2] = step + 1

    def finish(self, name: str) -> None:
        """A phase ends, and those inside it."""
        self._open = {key: phase for key, phase in self._open.items() if key != name and phase[0] != name}

    def share(self) -> float:
        """Of the outermost phase: 0 to 1."""
        return max((self._share(name) for name, phase in self._open.items() if phase[0] not in self._open), default=0.0)

    def _share(self, name: str) -> float:
        _, steps, done = self._open[name]
        inside = max((self._share(key) for key, phase in self._open.items() if phase[0] == name), default=0.0)
        return min(1.0, (done + inside) / steps)


class Interrupt:
    """Whether a signal asked the process to end."""

    def __init__(self) -> None:
        self.pressed = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Ctrl-C inside is noted instead of raised, as no exception can pass through TensorRT.

    The same goes for other signals that end the process by an exception; they come again at the end.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.pressed = True
        came.append(number)

    before = {number: signal.signal(number, note) for number in ENDINGS if callable(signal.getsignal(number))}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came and came[0] != signal.SIGINT:  # for which the caller has an exception
        signal.raise_signal(came[0])


def uninterrupted(work: Callable[[], Any]) -> Any:
    """What a call of TensorRT returns during which it logs: what a signal's handler raises then, it swallows.

    Raises:
        KeyboardInterrupt: after the call, if Ctrl-C was pressed.
    """
    with deferred_interrupt() as interrupt:
        found = work()
    if interrupt.pressed:
        found = None  # or the exception would hold it
        raise KeyboardInterrupt
    return found


def make_monitor(trt: ModuleType, advance: Advance, is_stopped: Callable[[], bool]) -> Any | None:
    """An IProgressMonitor that moves a bar of UNITS; None where TensorRT has none (8.6)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):
        """Called by TensorRT, from whatever thread builds."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases, self._shown, self._lock = Phases(), 0, threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                self._phases.step(phase_name, step)
                units = int(UNITS * self._phases.share()) - self._shown
                if units > 0:
                    self._shown += units
                    advance(units)
            return not is_stopped()

    return Monitor()
