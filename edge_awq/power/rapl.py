"""RAPL: the processor's own energy counters, on Intel and on AMD since Zen (kernel documentation, power/powercap).

One counter per package, in microjoule, renewed about every millisecond; it wraps around at ``max_energy_range_uj``,
which takes minutes under full load. Only packages count: sub-zones are parts of them, and "psys" is another total.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import MeterChoice, Reading, Source, Total
from edge_awq.power.sysfs import read_number, read_text

UDEV_RULE = ('SUBSYSTEM=="powercap", KERNEL=="intel-rapl:[0-9]*", ACTION=="add", '
             'RUN+="/bin/chgrp power /sys%p/energy_uj", RUN+="/bin/chmod g+r /sys%p/energy_uj"')
_PERMISSION = ("since Linux 5.10 only root may read it; to let a group do so: 'sudo groupadd -f power', 'sudo usermod "
               f"-aG power $USER', this line in /etc/udev/rules.d/70-rapl.rules, and a restart: {UDEV_RULE}")
_SHORTEST_NS = 10_000_000  # the counter's own steps would be the power of anything shorter
_HIGHEST_W = 10_000.0  # no package draws so much: the counter began anew while the machine slept
_LONGEST_INTERVAL_S = 1.0  # far below the time in which a counter wraps around twice


class _Package:
    """One counter; ``joules`` goes on where the counter wraps around."""

    def __init__(self, zone: Path) -> None:
        self.name = read_text(zone / "name") or zone.name
        self.file = zone / "energy_uj"
        self.joules = 0.0
        self._range_j = read_number(zone / "max_energy_range_uj", 1e-6)
        self._last: tuple[int, float] | None = None  # ns, joules by the counter

    def advance(self) -> tuple[bool, float | None]:
        """Whether the counter could be read, and milliwatts since it was last read.

        A reading that failed is no zero, which would look like a wrap-around; the next one spans the gap.

        Raises:
            EdgeAwqError: the counter lost what it had counted.
        """
        now_j, now_ns = read_number(self.file, 1e-6), time.monotonic_ns()
        if now_j is None:
            return False, None
        before, self._last = self._last, (now_ns, now_j)
        if before is None:
            return False, None
        step_j = now_j - before[1]
        if step_j < 0:
            if self._range_j is None:
                return False, None
            step_j += self._range_j
        elapsed_ns = now_ns - before[0]
        if step_j > _HIGHEST_W * max(elapsed_ns, _SHORTEST_NS) / 1e9:
            raise EdgeAwqError(f"rapl: {self.file} began anew", hint="measure again; a machine that sleeps does this")
        if step_j == 0 and elapsed_ns >= _SHORTEST_NS:
            return False, None  # virtual machines show counters that stand still
        self.joules += step_j
        return True, step_j / elapsed_ns * 1e12 if elapsed_ns >= _SHORTEST_NS else None


class Rapl:
    """See the module's text."""

    paces_itself = False

    def __init__(self, choice: MeterChoice) -> None:
        self._root = Path(choice.root)
        self._interval_s = min(choice.interval_s, _LONGEST_INTERVAL_S)

    def open(self) -> Source:
        """Find the packages that may be read."""
        folder = self._root / "sys/class/powercap"
        zones = [path for path in sorted(folder.glob("intel-rapl:*"))
                 if path.name.count(":") == 1 and (read_text(path / "name") or "").startswith("package")]
        if not zones:
            raise EdgeAwqError(f"rapl: no energy counter of a processor in {folder}",
                               hint="virtual machines and containers often hide it; use another meter, or none")
        if denied := [path for path in zones if not os.access(path / "energy_uj", os.R_OK)]:
            raise EdgeAwqError(f"rapl: {denied[0] / 'energy_uj'} may not be read", hint=_PERMISSION)
        self._packages = [_Package(path) for path in zones]
        for package in self._packages:
            package.advance()
            if not package.advance()[0]:
                raise EdgeAwqError(f"rapl: {package.file} gives no value", hint="choose another meter, or --meter none")
        self._began_ns = time.monotonic_ns()
        rails = tuple(package.name for package in self._packages)
        return Source("rapl", None, rails, Total("cpu-package", rails), self._interval_s, counter_min_s=0.0)

    def read(self) -> Sequence[Reading]:
        """One sample: power is the mean since the last one."""
        began_ns, self._began_ns = self._began_ns, time.monotonic_ns()
        steps = [package.advance() for package in self._packages]
        whole = all(read for read, _ in steps)
        counter_j = sum(package.joules for package in self._packages) if whole else None
        return [Reading(time.monotonic_ns(), began_ns, tuple(power_mw for _, power_mw in steps), counter_j)]
