"""The sampling process: ``python -m edge_awq.power.sampler NAMES CHOICE``; one JSON object a line on standard output.

    {"trying": name}                       before each meter, best first
    {"refused": [message, hint]}           it cannot measure here; the next one is tried
    {"source": {...}}                      it can, and it is the one
    {"reading": {...}}                     one sample
    {"lost": message}                      it could, and cannot any more; the last line

A process of its own, because jtop changes how multiprocessing starts processes, may hang for ever, and its work would
compete with the engine's threads. It ends when its standard input does, so also when the one that started it is killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from typing import Any, TextIO

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import Meter, MeterChoice
from edge_awq.power.choose import make_meter


def main() -> None:
    """Sample until told to stop."""
    out = _own_output()
    threading.Thread(target=_end_with_input, daemon=True).start()
    choice = MeterChoice(**json.loads(sys.argv[2]))
    try:
        for name in sys.argv[1].split(","):
            _say(out, trying=name)
            if _measure(make_meter(name, choice), out):
                break
    except BrokenPipeError:
        pass  # nobody listens any more
    os._exit(0)  # a meter's threads may not end


def _measure(meter: Meter, out: TextIO) -> bool:
    """Sample as long as the meter can; False when it cannot at all."""
    try:
        source = meter.open()
    except EdgeAwqError as error:
        _say(out, refused=[error.message, error.hint])
        return False
    _say(out, source=dataclasses.asdict(source))
    try:
        _sample(meter, source.interval_s, out)
    except EdgeAwqError as error:
        _say(out, lost=error.message)
    return True


def _own_output() -> TextIO:
    """Standard output for our lines alone; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return out


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def _sample(meter: Meter, interval_s: float, out: TextIO) -> None:
    """Read on a fixed beat, unless the source has its own; a beat that was missed is left out, never made up for."""
    beat_s = time.monotonic()
    while True:
        for reading in meter.read():
            _say(out, reading=dataclasses.asdict(reading))
        if meter.paces_itself:
            continue
        now_s = time.monotonic()
        beat_s = max(beat_s + interval_s, now_s)
        time.sleep(beat_s - now_s)


def _say(out: TextIO, **message: Any) -> None:
    out.write(json.dumps(message, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
