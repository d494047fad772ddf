"""The power monitors of a Jetson, read from the kernel without any service: INA3221 rails, on Thor an INA238 too.

hwmon gives millivolt and milliampere, for the INA238 also microwatt (kernel documentation, hwmon/ina3221 and ina238).
Reading needs no privilege, and containers see the files.

The INA3221 can average: a conversion moves its value by 1 / ``samples`` of the difference, so a value trails power by
``update_interval``, the time of that many conversions. Jetson Linux sets 512 samples and 0.43 s on Orin (nvpower.sh).
Reading may wait for a conversion, so how long it takes is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import MeterChoice, Reading, Source
from edge_awq.power.rails import find_totals, is_rail
from edge_awq.power.sysfs import gpu_devfreq, memory_clock_mhz, read_number, read_text, temperatures_c

_CARRIER = "ina238"  # measures what the carrier board takes in; has no label
_CHANNELS = (1, 2, 3)
_NOTED_NS = 100_000_000
_WAITING_S = 1.0  # reading that takes longer waits for conversions
_SETTLED = 3  # update intervals after which 95 % of a step is in a value


@dataclass(frozen=True)
class _Channel:
    label: str
    folder: Path
    number: int

    def read_mw(self) -> float | None:
        power_mw = read_number(self.folder / f"power{self.number}_input", 1e-3)
        if power_mw is not None:
            return power_mw
        volt_mv = read_number(self.folder / f"in{self.number}_input")
        current_ma = read_number(self.folder / f"curr{self.number}_input")
        return None if volt_mv is None or current_ma is None else volt_mv * current_ma / 1e3


class Ina3221:
    """See the module's text."""

    paces_itself = False

    def __init__(self, choice: MeterChoice) -> None:
        self._root = Path(choice.root)
        self._interval_s = choice.interval_s

    def open(self) -> Source:
        """Find the rails."""
        self._channels = _find_channels(self._root)
        if not self._channels:
            raise EdgeAwqError(f"ina3221: no power monitor in {self._root / 'sys/class/hwmon'}",
                               hint="only Jetson boards have one; choose another meter, or --meter none")
        began_s = time.monotonic()
        if all(value is None for value in self._rails_mw()):
            raise EdgeAwqError(f"ina3221: the monitors in {self._root / 'sys/class/hwmon'} give no values",
                               hint="look at dmesg for i2c errors")
        took_s = time.monotonic() - began_s
        if self._interval_s < took_s < _WAITING_S:  # a busy machine, once
            began_s = time.monotonic()
            self._rails_mw()
            took_s = min(took_s, time.monotonic() - began_s)
        self._devfreq, self._settling_ns = gpu_devfreq(self._root), settling_ns(self._root)
        rails = tuple(channel.label for channel in self._channels)
        total, others, notes = find_totals(rails)
        return Source("ina3221", None, rails, total, max(self._interval_s, took_s), others,
                      notes=notes + settling_notes(self._settling_ns))

    def read(self) -> Sequence[Reading]:
        """One sample."""
        began_ns = time.monotonic_ns() - self._settling_ns
        rails_mw = self._rails_mw()
        t_ns = time.monotonic_ns()
        gpu_c, junction_c = temperatures_c(self._root)
        gpu_mhz = read_number(self._devfreq / "cur_freq", 1e-6) if self._devfreq else None
        return [Reading(t_ns, began_ns, rails_mw, gpu_mhz=gpu_mhz, emc_mhz=memory_clock_mhz(self._root)[0],
                        temp_gpu_c=gpu_c, temp_tj_c=junction_c)]

    def _rails_mw(self) -> tuple[float | None, ...]:
        return tuple(channel.read_mw() for channel in self._channels)


def settling_ns(root: Path) -> int:
    """How far back the power reaches that a value of the board's monitors still shows; 0 where they do not average."""
    folders = [path for path in (root / "sys/class/hwmon").glob("hwmon*")
               if (read_text(path / "name") or "").lower().startswith("ina3221")]
    intervals_ms = [read_number(path / "update_interval") or 0.0 for path in folders]
    return round(_SETTLED * max(intervals_ms, default=0.0) * 1e6)


def settling_notes(reach_ns: int) -> tuple[str, ...]:
    """What a reader of the numbers should know of it."""
    text = f"the board's monitors average: the first {reach_ns / 1e9:.1f} s of a phase count as what follows them"
    return (text,) if reach_ns >= _NOTED_NS else ()


def _find_channels(root: Path) -> tuple[_Channel, ...]:
    found = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = (read_text(folder / "name") or "").lower()
        if chip.startswith(_CARRIER):
            found.append(_Channel("VIN", folder, 1))
        elif chip.startswith("ina3221"):
            labels = {number: read_text(folder / f"in{number}_label") for number in _CHANNELS}
            found += [_Channel(label, folder, number) for number, label in labels.items() if label and is_rail(label)]
    return tuple(found)
