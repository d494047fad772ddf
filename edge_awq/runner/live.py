"""The line at the bottom of the terminal while a model writes: tokens/s and watts.

The terminal scrolls only the rows above it (VT100's scrolling region), so streamed text and status never touch each
other, and each drawing is a single write that puts the cursor back. Behind a full row the cursor has a state that not
every terminal puts back (tmux does not), so nothing is drawn there. Off where either stream is no terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edge_awq.power.base import Reading
from edge_awq.power.monitor import Monitor
from edge_awq.runner.generate import Token

if TYPE_CHECKING:
    from rich.console import Console

_REDRAW_S = 0.2
_SAVE, _RESTORE, _WHOLE = "\x1b7", "\x1b8", "\x1b[r"  # cursor with its attributes; scrolling region of all rows
_REVERSE, _PLAIN, _CLEAR = "\x1b[7m", "\x1b[0m", "\x1b[2K"
_ROOM = "\x1bD\x1b[1A"  # one row down, which scrolls at the bottom, and up again; the column stays


class Live:
    """What happens now, in one line."""

    def __init__(self, line: BottomLine, meter: Monitor) -> None:
        self._line = line
        self._meter = meter
        self._count = 0
        self._first_s = self._last_s = 0.0
        self._drawn_s = 0.0
        self._column = 0  # where the text ends
        self._writing = False
        self._lock = threading.Lock()

    def watch(self, tokens: Iterator[Token]) -> Iterator[Token]:
        """Pass a stream of tokens on to what writes their text, and show how fast it is."""
        self._draw(time.monotonic())
        for token in tokens:
            if token.index == 0:
                self._first_s = token.t_s
            self._count, self._last_s = token.index + 1, token.t_s
            with self._lock:
                self._writing = True  # nothing is drawn until the text is there
            yield token
            with self._lock:
                self._writing = False
                self._column = column_after(self._column, token.text, self._line.width)
            self._draw(time.monotonic())

    def hear(self, reading: Reading) -> None:
        """A sample of the meter."""
        self._draw(reading.t_ns / 1e9)

    def _draw(self, now_s: float) -> None:
        with self._lock:
            full = self._column >= self._line.width
            if not self._writing and not full and now_s - self._drawn_s >= _REDRAW_S:
                self._drawn_s = now_s
                self._line.show(self.text())

    def text(self) -> str:
        """Tokens so far, their speed, and the power of this moment."""
        parts = [f"{self._count} tokens" if self._count else "reading the prompt"]
        if self._count > 1 and self._last_s > self._first_s:
            parts.append(f"{(self._count - 1) / (self._last_s - self._first_s):.1f} tok/s")
        source, reading = self._meter.source, self._meter.latest
        if source is not None and reading is not None and (watts := source.total_w(reading)) is not None:
            parts.append(f"{watts:.1f} W {source.total.scope}")
        return "  |  ".join(parts)


class BottomLine:
    """The last row of a terminal; the others scroll above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._height = 0

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._console.size.width

    def show(self, text: str) -> None:
        """Replace the line's text."""
        from rich.text import Text

        width, height = self._console.size
        line = Text(f" {text} ")
        line.truncate(width, pad=True)
        start = ""
        if height != self._height:  # the first time, and when the window was resized
            start = f"{_ROOM}{_SAVE}{_WHOLE}\x1b[1;{height - 1}r{_RESTORE}"
            self._height = height
        self._write(f"{start}{_SAVE}\x1b[{height};1H{_REVERSE}{line.plain}{_PLAIN}{_RESTORE}")

    def close(self) -> None:
        """Give the row back."""
        if self._height:
            self._write(f"{_SAVE}{_WHOLE}\x1b[{self._height};1H{_CLEAR}{_RESTORE}")
            self._height = 0

    def _write(self, sequence: str) -> None:
        self._console.file.write(sequence)
        self._console.file.flush()


def column_after(column: int, text: str, width: int) -> int:
    """Where a terminal's cursor is once ``text`` is written; ``width`` is behind a full row."""
    from rich.cells import cell_len

    for character in text:
        if character in "\r\n":
            column = 0
        elif character == "\t":
            column = min((column // 8 + 1) * 8, width - 1)
        elif cells := cell_len(character):
            column = cells if column + cells > width else column + cells
    return column


class _Off:
    def watch(self, tokens: Iterator[Token]) -> Iterator[Token]:
        return tokens


@contextmanager
def live_status(meter: Monitor, wanted: bool) -> Iterator[Any]:
    """Something whose ``watch`` a stream of tokens goes through; it shows nothing where nothing should be shown."""
    if not wanted or not sys.stderr.isatty() or not sys.stdout.isatty():
        yield _Off()
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_dumb_terminal or console.size.height < 3:
        yield _Off()
        return
    line = BottomLine(console)
    live = Live(line, meter)
    meter.listen(live.hear)
    try:
        yield live
    finally:
        meter.ignore(live.hear)
        line.close()
