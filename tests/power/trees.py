"""Sensor trees as the kernel shows them, for boards that are not here; values are written so that none is read half."""

from __future__ import annotations

from pathlib import Path

# I2C address -> labels of the chip's channels 1 to 3; public dumps of these boards have them.
BOARDS = {
    "orin-nx": {"0040": ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")},
    "agx-orin": {"0040": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "0041": ("NC", "VDDQ_VDD2_1V8AO", "NC")},
    "thor": {"0040": ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")},
}
CARRIER = {"thor"}  # boards whose carrier measures its input with an INA238
TOTALS = {"orin-nx": ("VDD_IN",), "agx-orin": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
          "thor": ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")}
SCOPES = {"orin-nx": "module", "agx-orin": "module-est", "thor": "module"}
RAIL_MV = 5000


def write(path: Path, text: str) -> None:
    """Replace a file whole: a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text + "\n")
    temporary.replace(path)


class Board:
    """A Jetson's power monitors below ``root``: in sys/bus/i2c/devices, as jtop looks, and in sys/class/hwmon."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.i2c = root / "sys/bus/i2c/devices"
        self._rails: dict[str, Path] = {}
        for index, (address, labels) in enumerate(BOARDS[name].items()):
            folder = self._chip(root, f"1-{address}", index, "ina3221")
            for channel, label in enumerate(labels, 1):
                write(folder / f"in{channel}_label", label)
                write(folder / f"in{channel}_input", str(RAIL_MV))
                write(folder / f"curr{channel}_input", "0")
                if label != "NC":
                    self._rails[label] = folder / f"curr{channel}_input"
            write(folder / "in7_label", "sum of shunt voltages")
        if name in CARRIER:
            self._carrier = self._chip(root, "2-0044", 9, "ina238") / "power1_input"
            write(self._carrier, "0")
        write(root / "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64")

    def _chip(self, root: Path, device: str, index: int, chip: str) -> Path:
        write(self.i2c / device / "name", chip)
        folder = self.i2c / device / "hwmon" / f"hwmon{index}"
        write(folder / "name", chip)
        (root / "sys/class/hwmon").mkdir(parents=True, exist_ok=True)
        (root / "sys/class/hwmon" / folder.name).symlink_to(folder)
        return folder

    def set_total_w(self, total_w: float) -> None:
        """Share power out over the rails of the total; the rails beside it get 1 W each, the carrier 3 W more."""
        parts = TOTALS[self.name]
        for rail, file in self._rails.items():
            power_w = total_w / len(parts) if rail in parts else 1.0
            write(file, str(round(power_w * 1e6 / RAIL_MV)))
        if self.name in CARRIER:
            write(self._carrier, str(round((total_w + 3) * 1e6)))


def add_rapl(root: Path, energy_uj: dict[str, int], range_uj: int = 262_143_328_850) -> Path:
    """Packages, each with a sub-zone, and a platform zone, as powercap has them; returns the folder."""
    folder = root / "sys/class/powercap"
    for index, (name, value) in enumerate(energy_uj.items()):
        for zone, label in ((f"intel-rapl:{index}", name), (f"intel-rapl:{index}:0", "core")):
            write(folder / zone / "name", label)
            write(folder / zone / "energy_uj", str(value))
            write(folder / zone / "max_energy_range_uj", str(range_uj))
    write(folder / f"intel-rapl:{len(energy_uj)}/name", "psys")
    write(folder / f"intel-rapl:{len(energy_uj)}/energy_uj", "7")
    return folder


def add_battery(root: Path, name: str = "BAT0", status: str = "Discharging", **values: int) -> Path:
    """A battery with files such as power_now; returns its folder."""
    folder = root / "sys/class/power_supply" / name
    for key, value in {"type": "Battery", "status": status, **values}.items():
        write(folder / key, str(value))
    return folder
