"""A laptop's battery: the power of the whole machine, only while it runs on the battery.

Kernel documentation, power/power_supply_class: microwatt, or microampere times microvolt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import MeterChoice, Reading, Source, Total
from edge_awq.power.sysfs import read_number, read_text

INTERVAL_S = 1.0  # fuel gauges renew their values every 1 to 30 s; more samples would be the same ones again


class Battery:
    """See the module's text."""

    paces_itself = False

    def __init__(self, choice: MeterChoice) -> None:
        self._root = Path(choice.root)
        self._interval_s = max(choice.interval_s, INTERVAL_S)

    def open(self) -> Source:
        """Find the batteries that are being emptied."""
        folder = self._root / "sys/class/power_supply"
        self._folders = [path for path in sorted(folder.glob("*")) if read_text(path / "type") == "Battery"
                         and (read_text(path / "scope") or "System") == "System"]
        if not self._folders:
            raise EdgeAwqError(f"battery: none in {folder}", hint="choose another meter, or --meter none")
        if not any(_discharging(path) for path in self._folders):
            status = ", ".join(f"{path.name} {read_text(path / 'status') or 'unknown'}" for path in self._folders)
            raise EdgeAwqError(f"battery: the machine does not run on it ({status})",
                               hint="unplug the charger: with it, the battery says nothing about the machine's power")
        # A bay may be empty, and a battery that rests may have no gauge to ask.
        self._folders = [path for path in self._folders if _power_mw(path) is not None]
        if not self._folders:
            raise EdgeAwqError(f"battery: none in {folder} tells its power",
                               hint="choose another meter, or --meter none")
        rails = tuple(path.name for path in self._folders)
        note = "whole laptop, display included; values are renewed every 1 to 30 s"
        return Source("battery", None, rails, Total("system-battery", rails), self._interval_s, notes=(note,))

    def read(self) -> Sequence[Reading]:
        """One sample; plugged in meanwhile, it has no values."""
        began_ns = time.monotonic_ns()
        plugged_in = not any(_discharging(path) for path in self._folders)
        rails_mw = tuple(None if plugged_in else _power_mw(path) for path in self._folders)
        return [Reading(time.monotonic_ns(), began_ns, rails_mw)]


def _discharging(folder: Path) -> bool:
    return read_text(folder / "status") == "Discharging"


def _power_mw(folder: Path) -> float | None:
    """Some drivers give current and power a sign while the battery empties."""
    power_mw = read_number(folder / "power_now", 1e-3)
    if power_mw is not None:
        return abs(power_mw)
    current_ma = read_number(folder / "current_now", 1e-3)
    volt_mv = read_number(folder / "voltage_now", 1e-3)
    return None if current_ma is None or volt_mv is None else abs(current_ma) * volt_mv / 1e3
