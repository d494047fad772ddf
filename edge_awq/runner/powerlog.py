"""power.csv: every sample of a meter, one row each, on file before the next one comes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from edge_awq.power.base import Reading, Source
from edge_awq.power.monitor import Monitor

POWER = "power.csv"
_BESIDE = ("gpu_load_pct", "gpu_mhz", "emc_mhz", "ram_used_bytes", "temp_gpu_c", "temp_tj_c", "throttled")


def power_columns(source: Source) -> tuple[str, ...]:
    """Names of the columns; the rails in the order of the start event's sampler."""
    rails = tuple(f"{rail}_mw" for rail in source.rails)
    return ("t_ns", "began_ns", "source_uptime_s", "total_w", *rails, "counter_j", *_BESIDE, "phase", "seq")


class PowerLog:
    """Writes samples as they come, those before it first.

    Attributes:
        phase: what the program does now; stands in every row.
        failure: why no more rows are written, None while all is well.
    """

    def __init__(self, folder: Path, meter: Monitor, started_ns: int) -> None:
        self.phase = ""
        self.failure: str | None = None
        self._meter = meter
        self._source = meter.source
        self._started_ns = started_ns
        self._rows = 0
        self._file = (folder / POWER).open("ab", buffering=0)  # a row is one write, so that a kill cuts none
        self._write(power_columns(self._source))
        meter.listen(self._take)

    def close(self) -> None:
        """No more rows."""
        self._meter.ignore(self._take)
        self._file.close()

    def _take(self, reading: Reading) -> None:
        if self.failure is not None:
            return
        row = [reading.t_ns - self._started_ns, reading.began_ns - self._started_ns, reading.source_uptime_s,
               self._source.total_w(reading), *reading.rails_mw, reading.counter_j,
               *(getattr(reading, name) for name in _BESIDE), self.phase, self._rows]
        self._rows += 1
        try:
            self._write(["" if value is None else value for value in row])
        except OSError as error:  # in the meter's thread, where nobody could catch it
            self.failure = error.strerror or str(error)

    def _write(self, row: object) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        self._file.write(text.getvalue().encode())
