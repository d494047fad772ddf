"""The kernels on the CPU, by ctypes: arguments as numpy arrays that end where memory ends, outputs poisoned."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
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
        lib = ctypes.CDLL(str(build_kernels.build_cpu(Path(folder))))
    lib.edge_awq_contract.restype = ctypes.c_char_p
    lib.edge_awq_float_from_half.restype = ctypes.c_float
    lib.edge_awq_decode_attention_partial_floats.restype = ctypes.c_int64
    lib.edge_awq_streamed_bytes.restype = ctypes.c_int64
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


def half_or_float(y: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A GEMV's two outputs, of which one is null."""
    return (y, None) if y.dtype == np.float16 else (None, y)


def pointer(array: np.ndarray | None) -> int | None:
    """For a ``c_void_p`` field."""
    return None if array is None else array.ctypes.data


def call(function: str, arguments: ctypes.Structure, schedule: int = 0) -> None:
    """Run a kernel to its end."""
    message = ctypes.create_string_buffer(512)
    if getattr(library(), function)(ctypes.byref(arguments), schedule, message, ctypes.c_size_t(len(message))):
        raise KernelError(message.value.decode())


class Fp16GemvArguments(ctypes.Structure):
    """As in fp16_matmul/kernel.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "logits")),
        *((name, ctypes.c_int) for name in ("rows", "K", "N")),
    )


@dataclass(frozen=True)
class Fp16Matrix:
    """W [N, K] float16."""

    stored: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """float64 [N, K]."""
        return self.stored.astype(np.float64)

    def gemv(self, x: np.ndarray, bias: np.ndarray | None = None, schedule: int = 0,
             dtype: type = np.float16) -> np.ndarray:
        """y [rows, N] float16 (or float32) of x [rows, K] float16, by the kernel."""
        y = poisoned(len(x), len(self.stored), dtype=dtype)
        tensors = [None if each is None else guarded(each) for each in (x, self.stored, bias)]
        call("edge_awq_fp16_gemv", Fp16GemvArguments(
            *map(pointer, (*tensors, *half_or_float(y))), len(x), *self.stored.shape[::-1]), schedule)
        return y


class IntGemvArguments(ctypes.Structure):
    """As in int4_matmul/kernel.h and int8_matmul/kernel.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "qweight", "scales", "zero_points", "bias", "y", "logits")),
        *((name, ctypes.c_int) for name in ("rows", "K", "N", "group_size")),
    )


@dataclass(frozen=True)
class IntMatrix:
    """W [N, K] as integers.

    Attributes:
        q: uint8 [N, K].
        zeros: uint8 [N, groups].
        scales: float16 [N, groups].
        group_size: weights per group; the last group of a row may be shorter.
        bits: 4 (q and zeros are 0 to 15) or 8.
    """

    q: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    group_size: int
    bits: int = 4

    @property
    def weights(self) -> np.ndarray:
        """float64 [N, K]: exact, for scale and q - zero have 11 and at most 9 bits."""
        spread = [np.repeat(each.astype(np.float64), self.group_size, axis=1)[:, : self.q.shape[1]]
                  for each in (self.zeros, self.scales)]
        return (self.q - spread[0]) * spread[1]

    def gemv(self, x: np.ndarray, bias: np.ndarray | None = None, schedule: int = 0,
             dtype: type = np.float16) -> np.ndarray:
        """y [rows, N] float16 (or float32) of x [rows, K] float16, by the kernel."""
        y = poisoned(len(x), len(self.q), dtype=dtype)
        stored = pack if self.bits == 4 else np.asarray
        tensors = [guarded(each) for each in (x, stored(self.q), self.scales, stored(self.zeros))]
        guarded_bias = None if bias is None else guarded(bias)
        pointers = map(pointer, (*tensors, guarded_bias, *half_or_float(y)))
        shape = (len(x), *self.q.shape[::-1], self.group_size)
        call(f"edge_awq_int{self.bits}_gemv", IntGemvArguments(*pointers, *shape), schedule)
        return y


def pack(nibbles: np.ndarray) -> np.ndarray:
    """uint8 [N, ceil(columns / 2)], the low nibble first. A pad nibble is 15: nobody may read it."""
    padded = np.pad(nibbles, ((0, 0), (0, nibbles.shape[1] % 2)), constant_values=15)
    return padded[:, 0::2] | padded[:, 1::2] << 4


def random_matrix(rng: np.random.Generator, N: int, K: int, group_size: int, bits: int = 4) -> IntMatrix:
    """Any integer, any zero point, scales over two orders of magnitude."""
    groups = -(-K // group_size)
    return IntMatrix(
        rng.integers(0, 2**bits, (N, K), dtype=np.uint8),
        rng.integers(0, 2**bits, (N, groups), dtype=np.uint8),
        np.exp(rng.uniform(np.log(1e-4), np.log(1e-2), (N, groups))).astype(np.float16),
        group_size,
        bits,
    )


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


def activations(rng: np.random.Generator, rows: int, K: int, outliers: int = 0) -> np.ndarray:
    """x [rows, K] float16 of unit size, ``outliers`` of its columns 100 times that."""
    x = rng.standard_normal((rows, K))
    x[:, rng.permutation(K)[:outliers]] *= 100
    return x.astype(np.float16)


def assert_product(y: np.ndarray, matrix: IntMatrix | Fp16Matrix, x: np.ndarray, roundings: int,
                   bias: np.ndarray | float = 0.0) -> None:
    """y [rows, N] is x @ W.T + bias but for that many roundings in fp32, and one to y's own type."""
    exact = x.astype(np.float64) @ matrix.weights.T + bias
    absolute = np.abs(x.astype(np.float64)) @ np.abs(matrix.weights).T + np.abs(bias)
    assert y.shape == exact.shape
    excess = np.abs(y - exact) - rounding_bound(exact, absolute, roundings, y.dtype == np.float16)
    assert excess.max() <= 0, f"off by {np.abs(y - exact).max()}"  # a NaN left in y fails too
