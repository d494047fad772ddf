"""What NVIDIA's driver says about its GPUs, by the CUDA driver API (libcuda); needs no package and makes no context."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

# CUdevice_attribute, cuda.h
_CLOCK_KHZ, _SM_COUNT, _INTEGRATED = 13, 16, 18
_MEMORY_KHZ, _BUS_BITS, _L2_BYTES = 36, 37, 38
_CC_MAJOR, _CC_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One GPU; bandwidth is None where the driver's bus width means nothing (Jetson)."""

    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    memory_bytes: int
    integrated: bool
    bandwidth_gb_s: float | None
    l2_bytes: int
    clock_mhz: float


def query_gpus(library: Any = None) -> tuple[Gpu, ...]:
    """Every GPU that CUDA can use; none without a driver, or where it does not start.

    Args:
        library: stands in for libcuda in tests.
    """
    library = library or _driver()
    count = ctypes.c_int()
    if library is None or library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(gpu for index in range(count.value) if (gpu := _query(library, index)) is not None)


def first_bus_id(library: Any = None) -> str | None:
    """PCI address of CUDA's device 0: the fastest GPU, not the first on the bus, unless CUDA_DEVICE_ORDER says so.

    Args:
        library: stands in for libcuda in tests.
    """
    library = library or _driver()
    device, address = ctypes.c_int(), ctypes.create_string_buffer(32)
    if library is None or library.cuInit(0) or library.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return None if library.cuDeviceGetPCIBusId(address, len(address), device) else address.value.decode()


def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _query(library: Any, index: int) -> Gpu | None:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    failed = (library.cuDeviceGet(ctypes.byref(device), index) or library.cuDeviceGetName(name, len(name), device)
              or library.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    if failed:
        return None

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        return 0 if library.cuDeviceGetAttribute(ctypes.byref(value), which, device) else value.value

    integrated = bool(attribute(_INTEGRATED))
    bytes_s = 2 * attribute(_MEMORY_KHZ) * 1e3 * attribute(_BUS_BITS) / 8  # two transfers a clock
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=(attribute(_CC_MAJOR), attribute(_CC_MINOR)),
        sm_count=attribute(_SM_COUNT),
        memory_bytes=memory.value,
        integrated=integrated,
        bandwidth_gb_s=round(bytes_s / 1e9, 1) if bytes_s and not integrated else None,
        l2_bytes=attribute(_L2_BYTES),
        clock_mhz=attribute(_CLOCK_KHZ) / 1e3,
    )
