"""The plugin library over a driver made for tests: kernels run on fibers, calls are noted, faults are ordered."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import PLUGINS, KernelError, build_kernels, need_compiler

from edge_awq.plugins import load_library

sys.path.insert(0, str(PLUGINS))
from build_library import COMPILERS, build_library

HERE = Path(__file__).resolve().parent
DRIVER_VARIABLE = "EDGE_AWQ_CUDA_DRIVER"
FP16, FP32, INT32, INT64, INT8 = "float16", "float32", "int32", "int64", "int8"


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    """Where the builds of this test run lie."""
    need_compiler()
    return tempfile.TemporaryDirectory()


def kernels_of(source: Path) -> list[str]:
    """The entry points in one .cu file, macros expanded."""
    text = subprocess.run(["g++", "-E", "-x", "c++", source], check=True, capture_output=True, text=True).stdout
    return re.findall(r'extern "C"\s+void\s+(\w+)\s*\(', text)


def stand_in_images(where: Path, architectures: Sequence[str] = build_kernels.ARCHITECTURES) -> list[Path]:
    """Files named like compiled kernels; each machine code's text is its own name, PTX lists the entry points."""
    images = []
    for source in build_kernels.KERNELS:
        name = f"{source.parent.name}_{source.stem}"
        texts = {f"{name}.{architecture}.cubin": f"{name} {architecture}" for architecture in architectures}
        entries = "\n".join(f".entry {kernel}(" for kernel in kernels_of(source))
        texts[f"{name}.{build_kernels.PTX_ARCHITECTURE}.ptx"] = f"{name} {build_kernels.PTX_ARCHITECTURE}\n{entries}"
        for file, text in texts.items():
            images.append(where / file)
            images[-1].write_text(text)
    return images


@functools.cache
def built_library() -> Path:
    """The real library with stand-ins for the compiled kernels."""
    return build_for(os.uname().machine)


@functools.cache
def build_for(machine: str) -> Path:
    """The same for another kind of machine."""
    where = Path(folder().name) / machine
    where.mkdir()
    return build_library(where, stand_in_images(where), machine)


@functools.cache
def built_driver() -> Path:
    """fake_driver.cpp."""
    return build_kernels.compile_cpp(HERE / "fake_driver.cpp", Path(folder().name) / "libfake_cuda.so")


@functools.cache
def built_ptx_driver() -> Path:
    """The same over a machine that executes PTX, ptx/driver.cpp."""
    path = Path(folder().name) / "libptx_cuda.so"
    return build_kernels.compile_cpp(HERE / "ptx" / "driver.cpp", path, standard="c++20")


@functools.cache
def ptx_texts(architecture: str) -> dict[str, str]:
    """What NVRTC makes of each kernel file, under the name that the library's build wants of its newest PTX."""
    nvrtc = build_kernels.Nvrtc.find()
    if nvrtc is None:
        pytest.skip(f"NVRTC is not installed: pip install {build_kernels.NVRTC_REQUIREMENT}")
    return {f"{source.parent.name}_{source.stem}.{build_kernels.PTX_ARCHITECTURE}.ptx":
            nvrtc.compile(source, architecture).decode().rstrip("\0") for source in build_kernels.KERNELS}


@functools.cache
def built_ptx_library(architecture: str) -> Path:
    """The real library with PTX alone."""
    where = Path(folder().name) / f"ptx-{architecture}"
    where.mkdir()
    for name, text in ptx_texts(architecture).items():
        (where / name).write_text(text)
    return build_library(where, [where / name for name in ptx_texts(architecture)])


@functools.cache
def named_driver() -> Path:
    """The same under the name by which a driver is looked for; $LD_LIBRARY_PATH must name its folder."""
    named = Path(folder().name) / "driver" / "libcuda.so.1"
    named.parent.mkdir()
    shutil.copy(built_driver(), named)
    return named


CONTEXT_IDS = itertools.count(2)  # never again the same: a library that is loaded sees the last one's context


def fresh_library(driver: Path | str, original: Path | None = None) -> ctypes.CDLL:
    """A copy of the library, so that it meets ``driver`` as if no other had been there before."""
    copy = Path(tempfile.mkdtemp(dir=folder().name)) / "libedge_awq_plugins.so"
    shutil.copy(original or built_library(), copy)
    library = load_library(copy)
    before = os.environ.get(DRIVER_VARIABLE)
    os.environ[DRIVER_VARIABLE] = str(driver)
    try:
        library.edge_awq_load()  # finds the driver, whatever else happens
    finally:
        if before is None:
            del os.environ[DRIVER_VARIABLE]
        else:
            os.environ[DRIVER_VARIABLE] = before
    return library


class CField(ctypes.Structure):
    """As in capi.h."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("type", ctypes.c_int), ("length", ctypes.c_int))


class CTensor(ctypes.Structure):
    """As in capi.h."""

    _fields_ = (("data", ctypes.c_void_p), ("rank", ctypes.c_int), ("dims", ctypes.c_int64 * 8))


def tensors(arrays: Sequence[np.ndarray]) -> ctypes.Array:
    """The arrays as the library takes them."""
    return (CTensor * len(arrays))(*(
        CTensor(array.ctypes.data, array.ndim, (ctypes.c_int64 * 8)(*array.shape)) for array in arrays))


def fields(attributes: dict[str, int | float]) -> ctypes.Array:
    """Attributes as the library takes them; keeps their values alive."""
    values = [(ctypes.c_int32 if isinstance(value, int) else ctypes.c_float)(value) for value in attributes.values()]
    array = (CField * len(values))(*(
        CField(name.encode(), ctypes.addressof(value), 5 if isinstance(value, ctypes.c_int32) else 1, 1)
        for name, value in zip(attributes, values, strict=True)))
    array.keep = values
    return array


@dataclass
class Device:
    """The library and the driver beneath it."""

    library: ctypes.CDLL
    driver: ctypes.CDLL
    compute_capability: int = 87

    @classmethod
    def make(cls) -> Device:
        """Both, loaded; the driver is the library's own."""
        return cls._over(built_driver(), built_library())

    @classmethod
    def make_ptx(cls) -> Device:
        """The kernels' PTX is executed, as it would be by a GPU newer than all machine code."""
        return cls._over(built_ptx_driver(), built_ptx_library(build_kernels.PTX_ARCHITECTURE), 100)

    @classmethod
    def _over(cls, driver_path: Path, library_path: Path, compute_capability: int = 87) -> Device:
        library = fresh_library(driver_path, library_path)
        driver = ctypes.CDLL(str(driver_path))
        driver.fake_calls.restype = ctypes.c_char_p
        driver.fake_arguments.restype = ctypes.c_void_p
        driver.fake_allocations.restype = ctypes.c_int64
        return cls(library, driver, compute_capability)

    def reset(self, **settings: int) -> None:
        """A new context on a device with these settings, and no faults."""
        defaults = {"compute_capability": self.compute_capability, "multiprocessors": 16, "integrated": 0, "context": 1,
                    "run": 1, "schedule": 0}
        for name, value in (defaults | {"context_id": next(CONTEXT_IDS)} | settings).items():
            self.driver.fake_set(name.encode(), value)
        self.driver.fake_work()
        self.driver.fake_forget()
        self.library.edge_awq_set_dependent_launch(0)

    def fail(self, function: str, status: int) -> None:
        """From now on this driver function returns that."""
        self.driver.fake_fail(function.encode(), status)

    def calls(self, kind: str) -> list[str]:
        """What followed ``kind`` in each such call since reset()."""
        lines = self.driver.fake_calls().decode().splitlines()
        return [line.removeprefix(kind).strip() for line in lines if line.split()[0] == kind]

    def arguments(self, size: int) -> bytes:
        """The last launch's, as the driver got them."""
        return ctypes.string_at(self.driver.fake_arguments(), size)

    def launch(self, plan: str, arguments: ctypes.Structure, stream: int = 0) -> None:
        """edge_awq_launch()."""
        size = ctypes.c_size_t(ctypes.sizeof(arguments))
        self._check(self.library.edge_awq_launch(plan.encode(), ctypes.byref(arguments), size,
                                                 ctypes.c_void_p(stream)))

    def create(self, op: str, **attributes: int | float) -> OpHandle:
        """edge_awq_create()."""
        given = fields(attributes)
        handle = self.library.edge_awq_create(op.encode(), given, len(given))
        self._check(handle is None)
        return OpHandle(self, ctypes.c_void_p(handle))

    @contextmanager
    def lent(self, arrays: Sequence[np.ndarray]) -> Iterator[None]:
        """The arrays are memory of the device meanwhile."""
        pieces = [(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)) for array in arrays]
        for piece in pieces:
            self.driver.fake_lend(*piece)
        try:
            yield
        finally:
            for address, _ in pieces:
                self.driver.fake_take_back(address)

    def _check(self, failed: int) -> None:
        if failed:
            raise KernelError(self.library.edge_awq_last_error().decode())


@dataclass
class OpHandle:
    """An op of the library, with numpy arrays for device memory."""

    device: Device
    handle: ctypes.c_void_p

    def workspace_bytes(self, *inputs: np.ndarray) -> int:
        """edge_awq_workspace_bytes()."""
        size = self.device.library.edge_awq_workspace_bytes(self.handle, tensors(inputs), len(inputs))
        self.device._check(size < 0)
        return size

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], workspace: np.ndarray | None = None,
            stream: int = 0) -> None:
        """edge_awq_enqueue(), with a workspace of exactly the right size unless one is given."""
        if workspace is None:
            workspace = np.full(self.workspace_bytes(*inputs), 0xFF, np.uint8)
        with self.device.lent([*inputs, *outputs, workspace]):
            self.device._check(self.device.library.edge_awq_enqueue(
                self.handle, tensors(inputs), len(inputs), tensors(outputs), len(outputs),
                ctypes.c_void_p(workspace.ctypes.data), ctypes.c_void_p(stream)))

    def close(self) -> None:
        """edge_awq_destroy()."""
        self.device.library.edge_awq_destroy(self.handle)


__all__ = ["COMPILERS", "Device", "KernelError", "OpHandle", "build_for", "build_library", "built_driver",
           "built_library", "fields", "folder", "fresh_library", "kernels_of", "stand_in_images", "tensors"]
