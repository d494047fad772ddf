"""What every meter says of itself and of each moment; all of it can travel as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

AUTO, NONE = "auto", "none"
INTERVAL_S = 0.1  # at 1 s, jtop's own default, the energy of a 0.4 s prefill comes out 44 % too small


@dataclass(frozen=True)
class MeterChoice:
    """Which meter to use and how.

    Attributes:
        name: "auto" for the machine's own, "none", or one of edge_awq.power.choose.METERS.
        interval_s: seconds from sample to sample that are asked for.
        device: what does the work, "gpu" or "cpu"; decides for "auto" on machines other than Jetson.
        root: where the system's files are: "/", or a tree that stands for it; containers may mount one.
        jtop_socket: the service's socket where it is not /run/jtop.sock.
        python: the interpreter that samples, None for this one; it needs the meter's package, not edge-awq's own.
        start_s: seconds that a meter may take to begin.
    """

    name: str = AUTO
    interval_s: float = INTERVAL_S
    device: str = "gpu"
    root: str = "/"
    jtop_socket: str | None = None
    python: str | None = None
    start_s: float = 10.0


@dataclass(frozen=True)
class Total:
    """A sum of rails and what it stands for.

    Attributes:
        scope: "module" all that the module draws, "module-est" an estimate of it from the rails that are measured,
            "board" with the carrier board, "gpu-board", "cpu-package", "system-battery" a whole laptop; None: unknown.
    """

    scope: str | None
    rails: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """What a meter measures.

    Attributes:
        backend: the meter's name; version: of what it reads through, None where that has none.
        rails: names in the order of every Reading's values.
        total: what counts as the machine's power; never add or compare totals of different scopes.
        other_totals: further sums that these rails make up.
        interval_s: seconds between its samples; may be longer than what was asked for.
        counter_min_s: the shortest phase whose energy its energy counter decides; None without a counter.
        notes: worth a line in the log.
        details: device and driver.
    """

    backend: str
    version: str | None
    rails: tuple[str, ...]
    total: Total
    interval_s: float
    other_totals: tuple[Total, ...] = ()
    counter_min_s: float | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def total_w(self, reading: Reading) -> float | None:
        """Watts of the total; None when one of its rails gave no value."""
        values = [reading.rails_mw[self.rails.index(rail)] for rail in self.total.rails]
        return sum(values) / 1e3 if values and None not in values else None

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Source:
        """The inverse of dataclasses.asdict."""
        totals = [Total(entry["scope"], tuple(entry["rails"])) for entry in (table["total"], *table["other_totals"])]
        changed = {"rails": tuple(table["rails"]), "notes": tuple(table["notes"]), "total": totals[0],
                   "other_totals": tuple(totals[1:])}
        return cls(**{**table, **changed})


@dataclass(frozen=True)
class Reading:
    """One sample; None is "not measured", never 0.

    Attributes:
        t_ns: when its values were there, CLOCK_MONOTONIC; began_ns: when the source began to read them, or when the
            stretch began that they are means of.
        rails_mw: milliwatts in the order of Source.rails.
        counter_j: joules that an energy counter has counted since any fixed moment.
        source_uptime_s: the source's own stamp, CLOCK_BOOTTIME.
        throttled: whether heat or current limits hold the clocks down now.
    """

    t_ns: int
    began_ns: int
    rails_mw: tuple[float | None, ...]
    counter_j: float | None = None
    source_uptime_s: float | None = None
    gpu_load_pct: float | None = None
    gpu_mhz: float | None = None
    emc_mhz: float | None = None
    ram_used_bytes: int | None = None
    temp_gpu_c: float | None = None
    temp_tj_c: float | None = None
    throttled: bool | None = None

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Reading:
        """The inverse of dataclasses.asdict."""
        return cls(**{**table, "rails_mw": tuple(table["rails_mw"])})


class Meter(Protocol):
    """One way to measure power; lives in the sampling process only, and ends with it.

    Attributes:
        paces_itself: ``read`` waits until its source has something new; otherwise it returns at once.
    """

    paces_itself: bool

    def open(self) -> Source:
        """Begin; may hang where the system does, the caller has a deadline.

        Raises:
            EdgeAwqError: it cannot measure here; says why and what would help.
        """
        ...

    def read(self) -> Sequence[Reading]:
        """The samples that are new; may be none.

        Raises:
            EdgeAwqError: the source is gone.
        """
        ...
