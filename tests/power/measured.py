"""Requests that a real meter measures over a sensor tree: tokens that come by the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator

from edge_awq.power.base import MeterChoice
from edge_awq.power.monitor import Monitor, start_meter
from edge_awq.runner.generate import Token

INTERVAL_S = 0.02


def start(root: object, name: str = "ina3221", **changes: object) -> Monitor:
    """A meter that is ready."""
    meter = start_meter(MeterChoice(name, root=str(root), interval_s=INTERVAL_S, **changes))
    meter.ready()
    return meter


def tokens(count: int = 4, prefill_s: float = 0.35, step_s: float = 0.15) -> Iterator[Token]:
    """A prompt is read, then one token after the other comes."""
    started_s = time.perf_counter()
    time.sleep(prefill_s)
    for index in range(count):
        now_s = time.perf_counter() - started_s
        yield Token(index, 7, f"word{index} ", now_s, now_s, "length" if index + 1 == count else None)
        time.sleep(step_s)
