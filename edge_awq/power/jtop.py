"""jtop: the client of jetson-stats (AGPL-3.0, an optional extra), imported only here, in processes of its own.

Its ways that would cost numbers: ``start`` has no time limit when the service hangs, so the caller has one. ``ok`` ends
silently when another client set a longer interval, so samples come by ``attach``; that repeats old ones, so those whose
uptime did not change are dropped. ``avg`` is no mean over any stretch of ours, ``tot`` another sum on every board.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import MeterChoice, Reading, Source
from edge_awq.power.ina3221 import settling_notes, settling_ns
from edge_awq.power.rails import find_totals

_FIRST_S = 6.0  # for the service's first sample
_STARVED_S = 3.0  # the service answers, but its sensors' values do not change any more
_PACING_S, _PACING_SAMPLES, _SLOW = 3.0, 4, 1.5  # for how long its pace is looked at, how many samples; what is slow
_REMEDIES = (
    ("not active", "start it with 'sudo systemctl start jtop'; in a container mount /run, a socket alone goes stale"),
    ("access", "'sudo usermod -aG jtop $USER' and log in again; in a container add --group-add with the gid of jtop"),
    ("Mismatch version", "install the service's version of jetson-stats here, or use --meter ina3221"),
    ("Mismatch of Python", "install jetson-stats with the service's Python version, or use --meter ina3221"),
)
_OTHERWISE = "look at 'systemctl status jtop', or use --meter ina3221, which needs no service"


def connect(interval_s: float, socket: str | None) -> tuple[Any, tuple[type[Exception], ...], str]:
    """A client at work, what it raises when the service fails, and its version; hangs when the service does.

    Raises:
        EdgeAwqError: jetson-stats is not installed, or its service does not answer.
    """
    try:
        import jtop
        from jtop import service
    except ImportError as error:
        raise EdgeAwqError(f"jtop: jetson-stats is not installed ({error})",
                           hint="pip install 'edge-awq[jetson]', in the version of the board's service") from error
    if socket is not None:
        service.JTOP_PIPE = socket  # read whenever a client is made
    failures = (jtop.JtopException, EOFError, OSError)
    end_s = time.monotonic() + _FIRST_S
    while True:
        client = jtop.jtop(interval_s)
        try:
            client.start()
            return client, failures, jtop.__version__
        except failures as error:
            # Its first client has three intervals' patience, and the service's first look at the board may take longer.
            if "Error connection" not in str(error) or time.monotonic() > end_s:
                raise refused(error) from error


class Jtop:
    """See the module's text."""

    paces_itself = True

    def __init__(self, choice: MeterChoice) -> None:
        self._interval_s = choice.interval_s
        self._settling_ns = settling_ns(Path(choice.root))
        self._socket = choice.jtop_socket
        self._samples: queue.SimpleQueue[tuple[int, float, dict[str, Any]]] = queue.SimpleQueue()
        self._last_uptime_s: float | None = None
        self._early: list[tuple[int, float, dict[str, Any]]] = []

    def open(self) -> Source:
        """Connect; hangs when the service does."""
        self._client, self._failures, version = connect(self._interval_s, self._socket)
        self._rails = tuple(sorted(_rails_mw(self._client.power)))
        if not self._rails:
            raise EdgeAwqError("jtop: the service reports no power rails on this machine",
                               hint="it measures power on Jetson boards only; choose another meter, or --meter none")
        self._last_uptime_s = self._client.uptime.total_seconds()  # may be of the service's last client, long ago
        self._client.attach(self._take)
        self._heard_s = time.monotonic()
        total, others, notes = find_totals(self._rails)
        return Source("jtop", version, self._rails, total, self._pace_s(), others,
                      notes=notes + settling_notes(self._settling_ns))

    def _pace_s(self) -> float:
        """Seconds from sample to sample: the service's interval, or what its own reading takes where that is longer."""
        if self._client.interval >= _PACING_S:
            return self._client.interval
        end_s = time.monotonic() + _PACING_S
        with suppress(queue.Empty):
            while len(self._early) < _PACING_SAMPLES:
                self._early.append(self._samples.get(timeout=max(end_s - time.monotonic(), 0)))
        steps_s = [after[1] - before[1] for before, after in itertools.pairwise(self._early)]
        shortest_s = min(steps_s, default=_PACING_S)
        return shortest_s if shortest_s > _SLOW * self._client.interval else self._client.interval

    def read(self) -> Sequence[Reading]:
        """Every new sample, after waiting for one."""
        found, self._early = self._early, []
        try:
            if not found:
                found.append(self._samples.get(timeout=max(self._client.interval, self._interval_s)))
            while True:
                found.append(self._samples.get_nowait())
        except queue.Empty:
            pass
        try:
            self._client.ok(spin=True)  # does not wait; raises what the reading thread met
        except self._failures as error:
            raise refused(error) from error
        now_s = time.monotonic()
        if found:
            self._heard_s = now_s
        elif now_s - self._heard_s > max(_STARVED_S, 3 * self._client.interval):
            raise EdgeAwqError(f"jtop: no new sample for {now_s - self._heard_s:.1f} s", hint=_OTHERWISE)
        return [self._reading(*sample) for sample in found]

    def _take(self, client: Any) -> None:
        """Called by jtop's thread whenever it has read, also when nothing is new."""
        t_ns, uptime_s = time.monotonic_ns(), client.uptime.total_seconds()
        if uptime_s != self._last_uptime_s:
            self._last_uptime_s = uptime_s
            values = {"power": client.power, "temperature": client.temperature, "memory": dict(client.memory),
                      "gpu": {name: client.gpu[name] for name in client.gpu}}
            self._samples.put((t_ns, uptime_s, values))

    def _reading(self, t_ns: int, uptime_s: float, values: dict[str, Any]) -> Reading:
        power_mw = _rails_mw(values["power"])
        gpu = next(iter(values["gpu"].values()), {})
        zones = values["temperature"].items()
        temperature_c = {name.lower(): zone["temp"] for name, zone in zones if zone.get("online")}
        memory, frequency = values["memory"], gpu.get("freq", {})
        return Reading(
            t_ns, _began_ns(t_ns, uptime_s) - self._settling_ns, tuple(power_mw.get(rail) for rail in self._rails),
            source_uptime_s=uptime_s, gpu_load_pct=gpu.get("status", {}).get("load"),
            gpu_mhz=_scaled(frequency.get("cur"), 1e-3), emc_mhz=_scaled(memory.get("EMC", {}).get("cur"), 1e-3),
            ram_used_bytes=_scaled(memory.get("RAM", {}).get("used"), 1024),
            temp_gpu_c=temperature_c.get("gpu"), temp_tj_c=temperature_c.get("tj"),
        )


def _rails_mw(power: Mapping[str, Any]) -> dict[str, float]:
    """Milliwatts by rail; ``tot`` is a rail of its own exactly when it carries a name."""
    rails = {name: values["power"] for name, values in power.get("rail", {}).items()
             if "power" in values and values.get("online", True)}  # one that is off has no power, not 0
    total = power.get("tot", {})
    return {total["name"]: total["power"], **rails} if "name" in total and "power" in total else rails


def _began_ns(t_ns: int, uptime_s: float) -> int:
    """When the service began to read a sample: its uptime (CLOCK_BOOTTIME, cut to 10 ms) on our clock."""
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return min(round(uptime_s * 1e9) - asleep_ns, t_ns)


def refused(error: Exception) -> EdgeAwqError:
    """What a client raised, in one line with a remedy."""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    hint = next((remedy for words, remedy in _REMEDIES if words in reason), _OTHERWISE)
    return EdgeAwqError(f"jtop: {reason}", hint=hint)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
