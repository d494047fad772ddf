"""The kernels on the CPU, by ctypes: arguments as numpy arrays that end where memory ends, outputs poisoned."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
sys.path.insert(0, str(PLUGINS))

import build_kernels  # noqa: E402

UNIT_ROUNDOFF = 2.0**-24  # of fp32
HALF_ROUNDOFF = 2.0**-11
HALF_SMALLEST = 2.0**-24
SCHEDULES = (0, 1, 12345)  # threads ascending, descending, shuffled
WATCHED = os.environ.get("EDGE_AWQ_RACES") == "1"  # every launch is searched for races: slow


class KernelError(Exception):
    """A launch was refused, or its threads wait for each other; the message is the library's."""


def need_compiler() -> None:
    """Skips the test where no C++ compiler is installed."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler: {compiler} is not installed")


@functools.cache
def library() -> ctypes.CDLL:
    """Built once per test run."""
    need_compiler()
    with tempfile.TemporaryDirectory() as folder:
        lib = ctypes.CDLL(str(build_kernels.build_cpu(Path(folder), watched=WATCHED)))
    lib.edge_awq_contract.restype = ctypes.c_char_p
    lib.edge_awq_float_from_half.restype = ctypes.c_float
    for name in ("decode_attention_partial_floats", "int4_matmul_partial_floats", "int8_matmul_partial_floats",
                 "fp16_matmul_partial_floats", "streamed_bytes", "read_bytes", "block_read_bytes", "written_bytes",
                 "bank_conflicts", "shared_wavefronts"):
        getattr(lib, f"edge_awq_{name}").restype = ctypes.c_int64
    lib.edge_awq_half_from_float.restype = ctypes.c_uint16
    lib.edge_awq_half_from_float.argtypes = [ctypes.c_float]
    return lib


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy that is followed by a page nobody may touch: reading past its end is a crash, not a wrong number."""
    size = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address + size), mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(pages, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy


def poisoned(*shape: int, dtype: type = np.float16) -> np.ndarray:
    """An output full of NaNs."""
    return guarded(np.full(shape, np.nan, dtype))


def pointer(array: np.ndarray | None) -> int | None:
    """For a ``c_void_p`` field."""
    return None if array is None else array.ctypes.data


def call(function: str, arguments: ctypes.Structure, schedule: int = 0) -> None:
    """Run a kernel to its end."""
    message = ctypes.create_string_buffer(512)
    if getattr(library(), function)(ctypes.byref(arguments), schedule, message, ctypes.c_size_t(len(message))):
        raise KernelError(message.value.decode())


def rounding_bound(exact: np.ndarray, absolute: np.ndarray, roundings: int, to_half: bool) -> np.ndarray:
    """How far a result may lie from ``exact`` if it is a sum in fp32, perhaps rounded once more to fp16.

    Args:
        exact: the sums, in float64.
        absolute: the sums of the terms' absolute values.
        roundings: the most fp32 roundings that any one term passes through; each adds at most 2^-24 of a partial sum,
            which is no larger than ``absolute`` (Higham, Accuracy and Stability, 3.1).
    """
    error = 1.01 * roundings * UNIT_ROUNDOFF * absolute
    if not to_half:
        return error
    return error + HALF_ROUNDOFF * (np.abs(exact) + error) + HALF_SMALLEST / 2
