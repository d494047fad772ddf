"""The board that runs: what decides its speed and power, from files that need no privilege; null where they are not.

Not yet verified on device: paths and formats are from Jetson Linux's documentation and public dumps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_awq.power.sysfs import gpu_devfreq, memory_clock_mhz, read_number, read_text, temperatures_c

THROTTLED = "throttled"
_JETPACKS = {"36.2.0": "6.0", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.2": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1",
             "36.4.7": "6.2.1", "36.5.0": "6.2.2", "36.5.2": "6.2.3", "38.2.0": "7.0", "38.2.1": "7.0", "38.2.2": "7.0",
             "38.4.0": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1", "39.2.2": "7.2.2"}


def describe_board(root: Path = Path("/")) -> dict[str, str | None] | None:
    """Model, module, L4T and JetPack of a Jetson; the vendor's product name of a PC; None where nothing tells."""
    model = read_text(root / "proc/device-tree/model") or read_text(root / "sys/class/dmi/id/product_name")
    compatible = read_text(root / "proc/device-tree/compatible") or ""
    modules = re.findall(r"\bp\d{4}-\d{4}\b", compatible.split("\0")[0])
    release = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    l4t = f"{release[1]}.{release[2]}" if release else None
    if model is None and l4t is None:
        return None
    # "p3768-0000+p3767-0005": the carrier, then the module
    return {"model": model, "module": modules[-1] if modules else None, "l4t": l4t, "jetpack": _JETPACKS.get(l4t)}


def power_mode(root: Path = Path("/")) -> dict[str, Any] | None:
    """Name and number of nvpmodel's mode; numbers mean another mode on every image, so compare names."""
    status = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    number = int(status[1])
    return {"name": power_modes(root).get(number), "id": number}


def power_modes(root: Path = Path("/")) -> dict[int, str]:
    """Names of the modes that nvpmodel knows on this image, by number; empty where there is no nvpmodel."""
    config = read_text(root / "etc/nvpmodel.conf") or ""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", config, re.MULTILINE)
    return {int(number): name for number, name in found}


def clocks(root: Path = Path("/")) -> dict[str, Any]:
    """Clocks now and their limits; ``jetson_clocks`` is whether the GPU's is fixed at its limit."""
    devfreq, (emc_cur_mhz, emc_max_mhz) = gpu_devfreq(root), memory_clock_mhz(root)
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    gpu = {name: read_number(devfreq / f"{name}_freq", 1e-6) if devfreq else None for name in ("cur", "min", "max")}
    return {
        "gpu_cur_mhz": gpu["cur"], "gpu_max_mhz": gpu["max"],
        "emc_cur_mhz": emc_cur_mhz, "emc_max_mhz": emc_max_mhz,
        "cpu_cur_mhz": read_number(cpu / "scaling_cur_freq", 1e-3),
        "cpu_max_mhz": read_number(cpu / "scaling_max_freq", 1e-3), "cpu_governor": read_text(cpu / "scaling_governor"),
        "jetson_clocks": None if None in gpu.values() else gpu["min"] == gpu["max"],
    }


def driver(root: Path = Path("/")) -> str | None:
    """Version of NVIDIA's kernel driver on a PC."""
    found = re.search(r"Kernel Module[^\n]*?\s(\d+\.\d+(?:\.\d+)?)\s",
                      read_text(root / "proc/driver/nvidia/version") or "")
    return found[1] if found else None


def throttle_events(root: Path = Path("/")) -> int | None:
    """How often heat or current made the machine slow down since it started; None where nothing counts that."""
    places = ("sys/class/hwmon/hwmon*/oc*_event_cnt",  # Jetson: over-current
              "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count")
    counts = [read_number(path) for place in places for path in sorted(root.glob(place))]
    known = [count for count in counts if count is not None]
    return round(sum(known)) if known else None


@dataclass(frozen=True)
class BoardState:
    """What may change during a run and spoil its numbers."""

    power_mode: dict[str, Any] | None
    clocks: dict[str, Any]
    throttle_events: int | None
    temp_gpu_c: float | None
    temp_tj_c: float | None

    @classmethod
    def now(cls, root: Path = Path("/")) -> BoardState:
        """As it is at this moment."""
        return cls(power_mode(root), clocks(root), throttle_events(root), *temperatures_c(root))

    def changed_since(self, before: BoardState) -> list[tuple[str, str]]:
        """Code and text of every change that makes speed and energy incomparable."""
        found = []
        if self.power_mode != before.power_mode:
            found.append(("mode_changed", f"the power mode was {before.power_mode} and is {self.power_mode}"))
        for name in ("gpu_max_mhz", "emc_max_mhz", "cpu_max_mhz"):
            if self.clocks[name] != before.clocks[name]:
                found.append(("clocks_changed", f"{name} was {before.clocks[name]} and is {self.clocks[name]}"))
        if None not in (self.throttle_events, before.throttle_events) and self.throttle_events > before.throttle_events:
            found.append((THROTTLED, f"{self.throttle_events - before.throttle_events} throttle events"))
        return found
