"""The plugin library's ops on a GPU, by ctypes: tensors are addresses with shapes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cuda_driver import Gpu
from edge_awq.plugins import load_library

INT32_FIELD, FLOAT32_FIELD = 5, 1


class OpError(Exception):
    """The library refused or failed; the message is its own."""


class CField(ctypes.Structure):
    """As in plugins/library/capi.h."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("type", ctypes.c_int), ("length", ctypes.c_int))


class CTensor(ctypes.Structure):
    """As in plugins/library/capi.h."""

    _fields_ = (("data", ctypes.c_void_p), ("rank", ctypes.c_int), ("dims", ctypes.c_int64 * 8))


class ReadArguments(ctypes.Structure):
    """As in plugins/measure/kernel.h."""

    _fields_ = (("data", ctypes.c_void_p), ("sums", ctypes.c_void_p), ("vectors", ctypes.c_int64),
                ("blocks", ctypes.c_int))


@dataclass(frozen=True)
class Tensor:
    """Device memory with a shape and a numpy dtype."""

    address: int
    shape: tuple[int, ...]
    dtype: type

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass
class Device:
    """A GPU and the library; owns what tensors() and poisoned() allocate."""

    gpu: Gpu = field(default_factory=Gpu)

    def __post_init__(self) -> None:
        self.library = load_library()
        self._owned: list[int] = []
        self.check(self.library.edge_awq_load())

    def check(self, failed: int) -> None:
        """Raise the library's last error."""
        if failed:
            raise OpError(self.library.edge_awq_last_error().decode())

    def empty(self, shape: tuple[int, ...], dtype: type) -> Tensor:
        """Memory as it is."""
        tensor = Tensor(0, tuple(shape), dtype)
        self._owned.append(self.gpu.allocate(tensor.nbytes))
        return Tensor(self._owned[-1], tuple(shape), dtype)

    def put(self, array: np.ndarray) -> Tensor:
        """The array on the device."""
        tensor = self.empty(array.shape, array.dtype.type)
        self.gpu.write(tensor.address, array)
        return tensor

    def poisoned(self, shape: tuple[int, ...], dtype: type = np.float16) -> Tensor:
        """Memory whose every byte is 0xFF: a NaN, or -1."""
        return self.put(np.frombuffer(b"\xff" * Tensor(0, tuple(shape), dtype).nbytes, dtype).reshape(shape))

    def get(self, tensor: Tensor) -> np.ndarray:
        """The tensor's values now."""
        return self.gpu.read(tensor.address, tensor.shape, tensor.dtype)

    def free_all(self) -> None:
        """Give back all memory."""
        self.gpu.synchronize()
        while self._owned:
            self.gpu.free(self._owned.pop())

    def op(self, name: str, **attributes: int | float) -> Op:
        """An op with these attributes."""
        values = [(ctypes.c_float if isinstance(value, float) else ctypes.c_int32)(value)
                  for value in attributes.values()]
        fields = (CField * len(values))(*(
            CField(key.encode(), ctypes.addressof(value),
                   FLOAT32_FIELD if isinstance(value, ctypes.c_float) else INT32_FIELD, 1)
            for key, value in zip(attributes, values, strict=True)))
        handle = self.library.edge_awq_create(name.encode(), fields, len(values))
        self.check(handle is None)
        return Op(self, ctypes.c_void_p(handle))

    def read_memory(self, data: Tensor, sums: Tensor, blocks: int) -> None:
        """Launch the reading of all of ``data``."""
        arguments = ReadArguments(data.address, sums.address, data.nbytes // 16, blocks)
        self.check(self.library.edge_awq_launch(b"read", ctypes.byref(arguments),
                                                ctypes.c_size_t(ctypes.sizeof(arguments)), self.gpu.stream))


def _c_tensors(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (CTensor * len(tensors))(*(
        CTensor(each.address, len(each.shape), (ctypes.c_int64 * 8)(*each.shape)) for each in tensors))


@dataclass(frozen=True)
class Op:
    """An op of the library."""

    device: Device
    handle: ctypes.c_void_p

    def workspace(self, inputs: Sequence[Tensor]) -> Tensor:
        """Memory of the size that it asks for; also prepares it, so that launches may be captured."""
        library, tensors = self.device.library, _c_tensors(inputs)
        size = library.edge_awq_workspace_bytes(self.handle, tensors, len(inputs))
        self.device.check(size < 0)
        self.device.check(library.edge_awq_prepare(self.handle, tensors, len(inputs)))
        return self.device.poisoned((size,), np.uint8)

    def launch(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: Tensor) -> None:
        """Enqueue it on the device's stream."""
        self.device.check(self.device.library.edge_awq_enqueue(
            self.handle, _c_tensors(inputs), len(inputs), _c_tensors(outputs), len(outputs),
            ctypes.c_void_p(workspace.address), self.device.gpu.stream))

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """workspace() and launch(), and wait."""
        self.launch(inputs, outputs, self.workspace(inputs))
        self.device.gpu.synchronize()
