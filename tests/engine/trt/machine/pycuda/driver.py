"""pycuda.driver over libcuda.so.1 by ctypes: what edge-awq calls, checked as pycuda checks it."""

from __future__ import annotations

import ctypes

import numpy as np

try:
    _cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:  # what the real one, linked to it, raises
    raise ImportError(str(error)) from error


class Error(Exception):
    """A driver's function failed."""


class MemoryError(Error):
    """pycuda's own name for an allocation that did not fit."""


def _call(name, *arguments):
    status = getattr(_cuda, name)(*arguments)
    if status:
        raise (MemoryError if status == 2 else Error)(f"{name} failed: {status}")


def init():
    _call("cuInit", 0)


class Context:
    @staticmethod
    def pop():
        _call("cuCtxSetCurrent", None)

    def push(self):
        _call("cuCtxSetCurrent", self.handle)

    def detach(self):
        _call("cuDevicePrimaryCtxRelease_v2", 0)


class Device:
    def __init__(self, index):
        self._device = ctypes.c_int()
        _call("cuDeviceGet", ctypes.byref(self._device), index)

    def retain_primary_context(self):
        context, context.handle = Context(), ctypes.c_void_p()
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(context.handle), self._device)
        return context


class Stream:
    def __init__(self):
        self._stream = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def handle(self):
        return self._stream.value

    def synchronize(self):
        _call("cuStreamSynchronize", self._stream)


class event_flags:
    BLOCKING_SYNC, DISABLE_TIMING = 1, 2


class Event:
    def __init__(self, flags=0):
        self._event = ctypes.c_void_p()
        _call("cuEventCreate", ctypes.byref(self._event), flags)

    def record(self, stream):
        _call("cuEventRecord", self._event, ctypes.c_void_p(stream.handle))

    def synchronize(self):
        _call("cuEventSynchronize", self._event)


class DeviceAllocation:
    def __init__(self, nbytes):
        self._address = ctypes.c_void_p()
        _call("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(nbytes))

    def __int__(self):
        return self._address.value

    def free(self):
        _call("cuMemFree_v2", self._address)


def mem_alloc(nbytes):
    return DeviceAllocation(nbytes)


def mem_get_info():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def pagelocked_zeros(shape, dtype):
    return np.zeros(shape, dtype)


def memset_d8_async(address, value, count, stream):
    _call("cuMemsetD8Async", ctypes.c_void_p(address), ctypes.c_ubyte(value), ctypes.c_size_t(count),
          ctypes.c_void_p(stream.handle))


def memcpy_htod_async(address, array, stream):
    _call("cuMemcpyHtoDAsync_v2", ctypes.c_void_p(address), ctypes.c_void_p(array.ctypes.data),
          ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream.handle))


def memcpy_dtoh_async(array, address, stream):
    _call("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_void_p(address),
          ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream.handle))


def memcpy_dtod_async(to, source, count, stream):
    _call("cuMemcpyDtoDAsync_v2", ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(count),
          ctypes.c_void_p(stream.handle))
