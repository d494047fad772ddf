"""The weights file: one safetensors file whose layout is known before any tensor is computed.

Knowing the layout first lets a build write every tensor straight to its final place, block by block, and go on
after a kill. Wider types come first, so every tensor is aligned to its type, and tensors of one type keep the order
in which they were listed, so q, k and v (and gate and up) lie side by side and can be read as one matrix.

Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, data without holes).
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from edge_awq.errors import EdgeAwqError

DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U8": np.dtype("u1")}
GET_AGAIN = "build or copy the bundle again"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be stored: ``dtype`` is a key of DTYPES."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a weights file; ``offset`` counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_layout(path: Path) -> dict[str, StoredTensor]:
    """Where every tensor of a safetensors file lies, in file order, from its header alone.

    Raises:
        EdgeAwqError: the header is broken, or the file is shorter than the header says.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            entries = [
                StoredTensor(name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0],
                             entry["data_offsets"][1] - entry["data_offsets"][0])
                for name, entry in header.items()
                if name != "__metadata__"
            ]
    except FileNotFoundError as error:
        raise EdgeAwqError(f"{path} is missing", hint=GET_AGAIN) from error
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise EdgeAwqError(f"{path}: not a safetensors file ({error!r})", hint=GET_AGAIN) from error
    entries.sort(key=lambda entry: entry.offset)
    if entries and entries[-1].offset + entries[-1].nbytes > path.stat().st_size:
        raise EdgeAwqError(f"{path}: cut short", hint=GET_AGAIN)
    return {entry.name: entry for entry in entries}


def read_tensor(path: Path, tensor: StoredTensor) -> np.ndarray:
    """One tensor of a weights file as a read-only view of the mapped file."""
    return np.memmap(path, DTYPES[tensor.dtype], "r", tensor.offset, tensor.shape)


class WeightsWriter:
    """Writes a weights file tensor by tensor, in any order; opened again, it goes on with what is there.

    All space is reserved at once, so a full disk is known before the work starts.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec]) -> None:
        ordered = sorted(specs, key=lambda spec: -DTYPES[spec.dtype].itemsize)
        header = _header(ordered)
        total = len(header) + sum(spec.nbytes for spec in ordered)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.pread(self._file, len(header), 0) != header:
                os.ftruncate(self._file, 0)
                _reserve(self._file, total, path)
                _write_at(self._file, header, 0)
        except BaseException:
            os.close(self._file)
            raise
        self.layout = read_layout(path)

    def write(self, name: str, array: np.ndarray) -> None:
        """Store one tensor; its shape and dtype must be those of the layout."""
        tensor = self.layout[name]
        if array.shape != tensor.shape or array.dtype != DTYPES[tensor.dtype]:
            raise ValueError(f"{name}: {array.dtype} {array.shape} given, {tensor.dtype} {tensor.shape} laid out")
        _write_at(self._file, np.ascontiguousarray(array).data.cast("B"), tensor.offset)

    def sync(self) -> None:
        """Return once everything written so far is on the disk."""
        os.fsync(self._file)

    def __enter__(self) -> WeightsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _header(specs: list[TensorSpec]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in specs:
        table[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, start + spec.nbytes]}
        start += spec.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _reserve(file: int, size: int, path: Path) -> None:
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EdgeAwqError(f"{path}: {size / 1e6:.0f} MB do not fit on the disk",
                               hint="free space, or choose another output folder") from error
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot reserve
            raise
        os.ftruncate(file, size)


def _write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view[: 1 << 30], offset)
        view, offset = view[written:], offset + written
