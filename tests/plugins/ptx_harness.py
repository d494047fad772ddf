"""The machine that executes PTX (ptx/) by itself: modules written by hand, launched over arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from library_harness import built_ptx_driver, need_compiler

SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class FaultError(Exception):
    """The machine refused PTX, or a launch; the message is the status and why."""


class _Config(ctypes.Structure):
    _fields_ = (("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
                ("stream", ctypes.c_void_p), ("attributes", ctypes.c_void_p), ("count", ctypes.c_uint))


class Driver:
    """The machine behind CUDA's driver functions."""

    def __init__(self) -> None:
        need_compiler()
        self.library = ctypes.CDLL(str(built_ptx_driver()))
        self._owned: list[ctypes.c_void_p] = []

    def check(self, status: int) -> None:
        """Raise what the driver says of a status that is not 0."""
        if status:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(status, ctypes.byref(text))
            raise FaultError(f"{status}: {(text.value or b'').decode()}")

    def set(self, **settings: int) -> None:
        """Settings of fake_driver.cpp."""
        for name, value in settings.items():
            self.library.fake_set(name.encode(), value)

    def put(self, array: np.ndarray) -> int:
        """The array's address, in memory that ends where it does."""
        address = ctypes.c_void_p()
        self.check(self.library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(array.nbytes)))
        self._owned.append(address)
        self.library.cuMemcpyHtoD_v2(address, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes))
        return address.value

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        """What lies there, as an array of that shape and dtype."""
        array = np.empty_like(like)
        self.library.cuMemcpyDtoH_v2(array.ctypes.data_as(ctypes.c_void_p), ctypes.c_void_p(address),
                                     ctypes.c_size_t(array.nbytes))
        return array

    def free_all(self) -> None:
        """Give back what put() took."""
        while self._owned:
            self.library.cuMemFree_v2(self._owned.pop())

    def function(self, text: str, entry: str) -> ctypes.c_void_p:
        """An entry of a module."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.library.cuModuleLoadData(ctypes.byref(module), text.encode()))
        self.check(self.library.cuModuleGetFunction(ctypes.byref(function), module, entry.encode()))
        return function

    def launch(self, function: ctypes.c_void_p, addresses: Sequence[int], threads: int = 32, blocks: int = 1,
               shared: int = 0, dependent: bool = False) -> None:
        """Its parameter is these addresses, one after the other; ``dependent``: may begin before the last one ends."""
        given = (ctypes.c_uint64 * 64)(*addresses)  # more than the driver copies
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        attribute = (ctypes.c_int * 18)(SERIALIZATION, 0, int(dependent))
        config = _Config((blocks, 1, 1), (threads, 1, 1), shared, None, ctypes.addressof(attribute), 1)
        self.check(self.library.cuLaunchKernelEx(ctypes.byref(config), function, parameters, None))

    def run(self, text: str, arrays: Sequence[np.ndarray], **options: int) -> list[np.ndarray]:
        """Launches the only entry over copies of these arrays; what is in them afterwards."""
        try:
            function = self.function(text, text.partition(".entry ")[2].partition("(")[0])
            addresses = [self.put(array) for array in arrays]
            self.launch(function, addresses, **options)
            return [self.get(address, array) for address, array in zip(addresses, arrays, strict=True)]
        finally:
            self.free_all()


def module(name: str, body: str, addresses: int = 1, before: str = "", threads: int = 1024) -> str:
    """A module with one entry: ``body`` behind %p0 ... (addresses), %t (thread as .u32) and %t64."""
    loads = "".join(f"ld.param.u64 %p{i}, [{name}_param_0+{8 * i}];\n" for i in range(addresses))
    return f""".version 8.5
.target sm_90
.address_size 64
{before}
.visible .entry {name}(
    .param .align 8 .b8 {name}_param_0[{8 * addresses}]
)
.maxntid {threads}, 1, 1
{{
    .reg .b64 %p<{addresses}>;
    .reg .b64 %t64;
    .reg .b32 %t;
    mov.u32 %t, %tid.x;
    cvt.u64.u32 %t64, %t;
    {loads}
    {body}
    ret;
}}
"""
