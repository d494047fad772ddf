"""NVML: the power of an NVIDIA GPU's board, read through nvidia-ml-py (import name ``pynvml``).

Never on Jetson, where NVML starts well and then answers no question. The plain power query is a mean over a second on
Ampere and newer, so the instant field is asked first (nvml.h, nvmlDeviceGetPowerUsage and NVML_FI_DEV_POWER_INSTANT).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.gpus import first_bus_id
from edge_awq.lazy import require
from edge_awq.power.base import MeterChoice, Reading, Source, Total
from edge_awq.power.sysfs import is_tegra

RAIL = "GPU"
_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT, milliwatt
_MEAN_NS = 1_000_000_000  # the stretch that the plain query's answer is a mean of
_COUNTER_MIN_S = 1.0  # the counter moves in steps of up to 0.1 s
# Reasons other than idle and limits that the user set: nvmlClocksEventReasons in nvml.h.
_THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80  # power cap, hardware slowdown, thermal by software and hardware, brake


class Nvml:
    """See the module's text."""

    paces_itself = False

    def __init__(self, choice: MeterChoice) -> None:
        self._root = Path(choice.root)
        self._interval_s = choice.interval_s

    def open(self) -> Source:
        """Start NVML and find out what this GPU answers."""
        if is_tegra(self._root):
            raise EdgeAwqError("nvml: on Jetson it measures no power", hint="use --meter jtop or --meter ina3221")
        self._nvml = require("pynvml", "nvml")
        try:
            self._nvml.nvmlInit()
            self._gpu = _first_gpu(self._nvml)
        except self._nvml.NVMLError as error:
            raise EdgeAwqError(f"nvml: {error}",
                               hint="check that nvidia-smi works; in a container, pass the GPU in") from error
        instant, plain = self._instant_mw(), self._ask("nvmlDeviceGetPowerUsage")
        if instant is None and plain is None:
            raise EdgeAwqError("nvml: this GPU does not tell its power",
                               hint="some laptop GPUs do not; choose another meter, or --meter none")
        self._power_mw: Callable[[], float | None] = self._instant_mw
        notes, self._mean_ns = [], 0
        if instant is None:
            self._mean_ns = _MEAN_NS
            self._power_mw = lambda: self._ask("nvmlDeviceGetPowerUsage")
            notes.append("power is the driver's running mean, of one second on Ampere and newer")
        counter = self._ask("nvmlDeviceGetTotalEnergyConsumption") is not None
        driver = self._nvml.nvmlSystemGetDriverVersion()
        details = {"device": _text(self._ask("nvmlDeviceGetName")), "driver": _text(driver)}
        return Source("nvml", _version(), (RAIL,), Total("gpu-board", (RAIL,)), self._interval_s, notes=tuple(notes),
                      counter_min_s=_COUNTER_MIN_S if counter else None, details=details)

    def read(self) -> Sequence[Reading]:
        """One sample."""
        began_ns = time.monotonic_ns()
        power_mw, counter_mj = self._power_mw(), self._ask("nvmlDeviceGetTotalEnergyConsumption")
        t_ns = time.monotonic_ns()
        load, memory = self._ask("nvmlDeviceGetUtilizationRates"), self._ask("nvmlDeviceGetMemoryInfo")
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return [Reading(
            t_ns, began_ns - self._mean_ns, (power_mw,), None if counter_mj is None else counter_mj / 1e3,
            gpu_load_pct=None if load is None else load.gpu,
            gpu_mhz=self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_GRAPHICS),
            emc_mhz=self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM),
            ram_used_bytes=None if memory is None else memory.used,
            temp_gpu_c=self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
            throttled=None if reasons is None else bool(reasons & _THROTTLED),
        )]

    def _ask(self, query: str, *arguments: Any) -> Any:
        """An answer about the GPU, None where this GPU, driver or library has none."""
        try:
            return getattr(self._nvml, query)(self._gpu, *arguments)
        except self._nvml.NVMLError:
            return None

    def _instant_mw(self) -> float | None:
        values = self._ask("nvmlDeviceGetFieldValues", [_POWER_INSTANT])
        if not values or values[0].nvmlReturn != self._nvml.NVML_SUCCESS:
            return None
        kinds = {self._nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal", self._nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
                 self._nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal"}
        kind = kinds.get(values[0].valueType)
        return float(getattr(values[0].value, kind)) if kind else None


def _first_gpu(nvml: Any) -> Any:
    """The GPU that CUDA takes by default. NVML counts GPUs along the bus, CUDA from the fastest, so CUDA is asked."""
    if nvml.nvmlDeviceGetCount() > 1 and (address := first_bus_id()) is not None:
        return nvml.nvmlDeviceGetHandleByPciBusId(address)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if visible.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(visible)
    return nvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdigit() else 0)


def _version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("nvidia-ml-py")
    except metadata.PackageNotFoundError:
        return None  # the module came from elsewhere


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
