"""Small reads of the kernel's files below a root; what is missing or unreadable is None."""

from __future__ import annotations

from pathlib import Path

# The kernel's names of zones differ by case and ending: GPU-therm, gpu-thermal.
_GPU_ZONE, _JUNCTION_ZONE = "gpu", "tj"


def read_text(path: Path) -> str | None:
    """A file's text without surrounding blanks; device-tree texts end with a zero byte."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0").strip()
    except OSError:
        return None


def read_number(path: Path, scale: float = 1.0) -> float | None:
    """The number in a file, times ``scale``."""
    text = read_text(path)
    try:
        return None if text is None else float(text.split()[0]) * scale
    except (ValueError, IndexError):
        return None


def is_tegra(root: Path = Path("/")) -> bool:
    """Whether this is a Jetson: by L4T's release file or the device tree, which containers see too."""
    compatible = read_text(root / "proc/device-tree/compatible") or ""
    return (root / "etc/nv_tegra_release").exists() or "nvidia,tegra" in compatible


def gpu_devfreq(root: Path) -> Path | None:
    """The integrated GPU's folder of frequencies."""
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    names = {path: read_text(path / "device/of_node/name") or path.name for path in folders}
    return next((path for path, name in names.items() if any(word in name for word in ("gpu", "gv11b", "ga10b"))), None)


def memory_clock_mhz(root: Path) -> tuple[float | None, float | None]:
    """The memory's clock on a Jetson and its limit in this power mode, each None where it may not be read.

    Since JetPack 7 both are devfreq's, for everybody. Before, the clock is root's, and nvpmodel's cap is for everybody.
    """
    devfreq, debug = root / "sys/class/devfreq/bwmgr", root / "sys/kernel/debug/bpmp/debug/clk/emc"
    if devfreq.exists():
        return read_number(devfreq / "cur_freq", 1e-6), read_number(devfreq / "max_freq", 1e-6)
    limits = [read_number(debug / "max_rate", 1e-6), read_number(root / "sys/kernel/nvpmodel_clk_cap/emc", 1e-6)]
    return read_number(debug / "rate", 1e-6), min(filter(None, limits), default=None)  # a cap of 0 is none


def temperatures_c(root: Path) -> tuple[float | None, float | None]:
    """Temperature of the GPU and the hottest junction; zones that are switched off give no value."""
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name = (read_text(zone / "type") or "").lower()
        value = read_number(zone / "temp", 1e-3)
        if value is not None and value > -50:  # a zone whose rail is off reads -256
            found[name.replace("_", "-").split("-")[0]] = value
    return found.get(_GPU_ZONE), found.get(_JUNCTION_ZONE)
