"""A GPU through the CUDA driver's C functions: memory, a stream, graphs and their times. No package but numpy."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass

import numpy as np

DRIVER_VARIABLE = "EDGE_AWQ_CUDA_DRIVER"  # the plugin library reads it too
MULTIPROCESSORS, MEMORY_CLOCK_KHZ, BUS_BITS, L2_BYTES, MAJOR, MINOR = 16, 36, 37, 38, 75, 76
THREAD_LOCAL_CAPTURE = 1
NON_BLOCKING_STREAM = 1


class GpuError(Exception):
    """The driver is missing, or one of its functions failed; the message says which and how."""


class Driver:
    """libcuda.so.1, or what $EDGE_AWQ_CUDA_DRIVER names."""

    def __init__(self) -> None:
        name = os.environ.get(DRIVER_VARIABLE, "libcuda.so.1")
        try:
            self.library = ctypes.CDLL(name)
        except OSError as error:
            raise GpuError(f"no NVIDIA driver: {error}") from error

    def __call__(self, function: str, *arguments: object) -> None:
        """Call ``function``.

        Raises:
            GpuError: it does not return 0.
        """
        status = getattr(self.library, function)(*arguments)
        if status:
            name = c_char_p()
            self.library.cuGetErrorName(status, byref(name))
            raise GpuError(f"{function}: {(name.value or b'unknown error').decode()} ({status})")


@dataclass(frozen=True)
class Graph:
    """Launches that were captured once, to be replayed."""

    gpu: Gpu
    handle: c_void_p

    def seconds(self) -> float:
        """One replay's time on the device, between two events."""
        call, events = self.gpu.call, (c_void_p(), c_void_p())
        for event in events:
            call("cuEventCreate", byref(event), 0)
        call("cuEventRecord", events[0], self.gpu.stream)
        call("cuGraphLaunch", self.handle, self.gpu.stream)
        call("cuEventRecord", events[1], self.gpu.stream)
        call("cuEventSynchronize", events[1])
        milliseconds = c_float()
        call("cuEventElapsedTime", byref(milliseconds), *events)
        for event in events:
            call("cuEventDestroy_v2", event)
        return milliseconds.value / 1e3

    def close(self) -> None:
        """Give it back."""
        self.gpu.call("cuGraphExecDestroy", self.handle)


class Gpu:
    """Device 0 in its primary context, which torch shares, with one stream."""

    def __init__(self) -> None:
        self.call = Driver()
        self.call("cuInit", 0)
        device, context, self.stream = c_int(), c_void_p(), c_void_p()
        self.call("cuDeviceGet", byref(device), 0)
        self._device = device
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", byref(self.stream), NON_BLOCKING_STREAM)
        name, version, memory = ctypes.create_string_buffer(128), c_int(), c_size_t()
        self.call("cuDeviceGetName", name, 128, device)
        self.call("cuDriverGetVersion", byref(version))
        self.call("cuDeviceTotalMem_v2", byref(memory), device)
        self.name, self.driver_version, self.memory_bytes = name.value.decode(), version.value, memory.value
        self.compute_capability = self.attribute(MAJOR) * 10 + self.attribute(MINOR)
        self.multiprocessors, self.l2_bytes = self.attribute(MULTIPROCESSORS), self.attribute(L2_BYTES)

    def attribute(self, number: int) -> int:
        """A CUdevice_attribute."""
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    @property
    def bandwidth(self) -> float:
        """Theoretical, bytes per second: two transfers per clock of the memory bus."""
        return 2 * self.attribute(MEMORY_CLOCK_KHZ) * 1e3 * self.attribute(BUS_BITS) / 8

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of device memory."""
        address = c_uint64()
        self.call("cuMemAlloc_v2", byref(address), c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """What allocate() gave."""
        self.call("cuMemFree_v2", c_uint64(address))

    def write(self, address: int, array: np.ndarray) -> None:
        """Copy an array to the device."""
        array = np.ascontiguousarray(array)
        self.call("cuMemcpyHtoD_v2", c_uint64(address), c_void_p(array.ctypes.data), c_size_t(array.nbytes))

    def read(self, address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Copy an array from the device, after everything before has finished."""
        array = np.empty(shape, dtype)
        self.synchronize()
        self.call("cuMemcpyDtoH_v2", c_void_p(array.ctypes.data), c_uint64(address), c_size_t(array.nbytes))
        return array

    def synchronize(self) -> None:
        """Wait for the stream; a kernel's fault is an error here."""
        self.call("cuStreamSynchronize", self.stream)

    def capture(self, launches: Callable[[], None]) -> Graph:
        """What ``launches`` puts on the stream, as a graph."""
        graph, executable = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", self.stream, THREAD_LOCAL_CAPTURE)
        try:
            launches()
        finally:
            self.call("cuStreamEndCapture", self.stream, byref(graph))
        self.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
        self.call("cuGraphDestroy", graph)
        return Graph(self, executable)
