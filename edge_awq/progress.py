"""Progress of long work: a bar with an ETA on a terminal, plain lines elsewhere, nothing in tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Told about one piece of work after another."""

    @contextmanager
    def track(self, what: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Work of ``total`` units, ``done`` of them finished before; the body calls advance(units)."""
        ...

    def note(self, text: str) -> None:
        """One line worth reading, such as a decision or a fallback."""
        ...


class Quiet:
    """Says nothing."""

    @contextmanager
    def track(self, what: str, total: int, done: int = 0) -> Iterator[Advance]:
        yield lambda units: None

    def note(self, text: str) -> None:
        pass


class Lines:
    """Plain lines for pipes and log files, at most one every ``interval_s`` seconds, each with an ETA."""

    def __init__(self, write: Callable[[str], None], interval_s: float = 5.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._interval_s = interval_s
        self._clock = clock

    @contextmanager
    def track(self, what: str, total: int, done: int = 0) -> Iterator[Advance]:
        started_s = last_s = self._clock()
        before = done
        self._write(f"{what}: {done}/{total}")

        def advance(units: int) -> None:
            nonlocal done, last_s
            done += units
            now_s = self._clock()
            if done < total and now_s - last_s >= self._interval_s:
                last_s = now_s
                eta_s = (now_s - started_s) / (done - before) * (total - done)
                self._write(f"{what}: {done}/{total}, ETA {_duration(eta_s)}")

        yield advance
        self._write(f"{what}: done in {_duration(self._clock() - started_s)}")

    def note(self, text: str) -> None:
        self._write(text)


class Bars:
    """rich bars on standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def track(self, what: str, total: int, done: int = 0) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
        with RichProgress(*columns, console=self._console) as bars:
            task = bars.add_task(what, total=total, completed=done)
            yield lambda units: bars.advance(task, units)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
