"""The matmuls on the CPU: weights in every format, their kernels by ctypes, and bounds for what they compute."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from kernel_harness import (
    HALF_ROUNDOFF,
    HALF_SMALLEST,
    UNIT_ROUNDOFF,
    call,
    guarded,
    library,
    pointer,
    poisoned,
    rounding_bound,
)

NORMS = (None, "rms", "layer")
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
EPSILON = 1e-5
GEMV_ROWS = 8  # at most; more are multiplied in tiles
TENSORS = ("norm_weight", "norm_bias", "bias", "act_scale", "residual")


class LinearArguments(ctypes.Structure):
    """As in common/linear.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", *TENSORS, "y", "logits", "partial", "finished")),
        *((name, ctypes.c_int) for name in ("rows", "K", "N", "norm")),
        ("norm_epsilon", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("activation", "gated", "splits")),
    )


class Fp16Arguments(LinearArguments):
    """As in fp16_matmul/kernel.h."""

    _fields_ = (("weight", ctypes.c_void_p),)


class IntArguments(LinearArguments):
    """As in int4_matmul/kernel.h and int8_matmul/kernel.h."""

    _fields_ = (*((name, ctypes.c_void_p) for name in ("qweight", "scales", "zero_points")),
                ("group_size", ctypes.c_int))


class Matrix:
    """W [N, K] in some format; a subclass says what the kernel's name is and which arguments hold the weights."""

    arguments: ClassVar[type]

    def summed(self, rows: int) -> np.ndarray:
        """float64 [N, K]: absolute values of what the kernel for so many rows of x multiplies by x and adds up."""
        return np.abs(self.weights)

    def matmul(self, x: np.ndarray, schedule: int = 0, dtype: type = np.float16, **linear: object) -> np.ndarray:
        """y [rows, outputs] float16 (or float32) of x [rows, K] float16, by the kernel.

        ``linear``: what common/linear.h has: bias, residual, act_scale, activation, gated, norm ...
        """
        N, K = self.shape
        y = poisoned(len(x), N // 2 if linear.get("gated") else N, dtype=dtype)
        tensors = {name: guarded(linear[name]) for name in TENSORS if linear.get(name) is not None}
        linear = {name: value for name, value in linear.items() if name not in TENSORS}
        if linear.pop("in_place", False):
            y = tensors["residual"]
        tensors |= {"x": guarded(x), "y" if dtype == np.float16 else "logits": y}
        tensors |= {name: guarded(each) for name, each in self.stored_tensors.items()}
        arguments = self.arguments(
            **{name: pointer(each) for name, each in tensors.items()}, **self.settings, rows=len(x), K=K, N=N,
            norm=NORMS.index(linear.pop("norm", None)), activation=ACTIVATIONS.index(linear.pop("activation", None)),
            **{"splits": 1, "norm_epsilon": EPSILON} | linear)
        kernel = f"edge_awq_{self.format}_matmul"
        partial = poisoned(getattr(library(), f"{kernel}_partial_floats")(ctypes.byref(arguments)), dtype=np.float32)
        finished = guarded(np.zeros(getattr(library(), f"{kernel}_counters")(ctypes.byref(arguments)), np.int32))
        arguments.partial, arguments.finished = pointer(partial), pointer(finished)
        call(kernel, arguments, schedule)
        assert (finished == 0).all()
        return y


@dataclass(frozen=True)
class Fp16Matrix(Matrix):
    """W [N, K] float16."""

    stored: np.ndarray
    arguments: ClassVar[type] = Fp16Arguments
    format: ClassVar[str] = "fp16"
    settings: ClassVar[dict[str, int]] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.stored.shape

    @property
    def weights(self) -> np.ndarray:
        """float64 [N, K]."""
        return self.stored.astype(np.float64)

    @property
    def stored_tensors(self) -> dict[str, np.ndarray]:
        """The kernel's tensors by their arguments' names."""
        return {"weight": self.stored}


@dataclass(frozen=True)
class IntMatrix(Matrix):
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
    arguments: ClassVar[type] = IntArguments

    @property
    def format(self) -> str:
        """As in the kernels' names."""
        return f"int{self.bits}"

    @property
    def settings(self) -> dict[str, int]:
        """Arguments beside the tensors."""
        return {"group_size": self.group_size}

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.q.shape

    @property
    def weights(self) -> np.ndarray:
        """float64 [N, K]: exact, for scale and q - zero have 11 and at most 9 bits."""
        return (self.q - self.spread(self.zeros)) * self.spread(self.scales)

    def spread(self, of_groups: np.ndarray) -> np.ndarray:
        """float64 [N, K] of a value per group."""
        return np.repeat(of_groups.astype(np.float64), self.group_size, axis=1)[:, : self.q.shape[1]]

    def summed(self, rows: int) -> np.ndarray:
        """The int4 GEMVs add up integers and zero points apart."""
        apart = self.bits == 4 and rows <= GEMV_ROWS
        return (self.q + self.spread(self.zeros)) * self.spread(self.scales) if apart else super().summed(rows)

    @property
    def stored_tensors(self) -> dict[str, np.ndarray]:
        """The kernel's tensors by their arguments' names."""
        stored = pack if self.bits == 4 else np.asarray
        return {"qweight": stored(self.q), "scales": self.scales, "zero_points": stored(self.zeros)}


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


def random_fp16_matrix(rng: np.random.Generator, N: int, K: int) -> Fp16Matrix:
    """As large as makes results of unit size."""
    return Fp16Matrix((rng.standard_normal((N, K)) / np.sqrt(K)).astype(np.float16))


def activations(rng: np.random.Generator, rows: int, K: int, outliers: int = 0) -> np.ndarray:
    """x [rows, K] float16 of unit size, ``outliers`` of its columns 100 times that."""
    x = rng.standard_normal((rows, K))
    x[:, rng.permutation(K)[:outliers]] *= 100
    return x.astype(np.float16)


def gaussian_error_function(z: np.ndarray) -> np.ndarray:
    """erf, in float64."""
    return np.vectorize(math.erf, otypes=[np.float64])(z)


def activate(name: str | None, z: np.ndarray) -> np.ndarray:
    """As common/linear.h names them, in float64."""
    if name == "relu":
        return np.maximum(z, 0)
    if name == "silu":
        return z / (1 + np.exp(-z))
    if name == "gelu":
        return 0.5 * z * (1 + gaussian_error_function(z / np.sqrt(2)))
    if name == "gelu_tanh":
        return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    return z


STEEPEST = 1.13  # slope of any activation
ACTIVATION_ROUNDINGS = 16  # of z, in any activation: a few operations and a library's function within 4 ulp


def normed(x: np.ndarray, linear: dict) -> tuple[np.ndarray, np.ndarray | float]:
    """norm(x) in float64, and how far the kernel's may lie from it: it is rounded to fp16, after a few roundings in
    fp32 per value and some hundred in a sum, of which a square root is taken."""
    x = x.astype(np.float64)
    kind = linear.get("norm")
    if kind is None:
        return x, 0.0
    mean = x.mean(1, keepdims=True) if kind == "layer" else 0.0
    factor = 1 / np.sqrt(((x - mean) ** 2).mean(1, keepdims=True) + EPSILON)
    weight = linear["norm_weight"].astype(np.float64)
    y = (x - mean) * factor * weight
    roundings = 128
    error = roundings * UNIT_ROUNDOFF * (np.abs(y) + np.abs(x).mean(1, keepdims=True) * factor * np.abs(weight))
    if linear.get("norm_bias") is not None:
        y = y + linear["norm_bias"]
    return y, error + HALF_ROUNDOFF * (np.abs(y) + error) + HALF_SMALLEST / 2


def assert_product(y: np.ndarray, matrix: Matrix, x: np.ndarray, roundings: int, cut: float = 0.0,
                   **linear: object) -> None:
    """y [rows, outputs] is what common/linear.h says, but for roundings.

    Args:
        roundings: in fp32, of a term on its way through a sum over K, the bias included; see rounding_bound().
        cut: what besides may be lost of each weight, in steps of its scale.
    """
    bias, summed = linear.get("bias", 0.0), matrix.summed(len(x)).T
    x, x_error = normed(x, linear)
    z = x @ matrix.weights.T + bias
    spread = x_error @ np.abs(matrix.weights).T if linear.get("norm") else 0.0
    error = spread + rounding_bound(z, (np.abs(x) + x_error) @ summed + np.abs(bias), roundings, to_half=False)
    if cut:
        error = error + cut * (np.abs(x) + x_error) @ matrix.spread(matrix.scales).T
    name = linear.get("activation")
    gate, up = np.split(z, 2, 1) if linear.get("gated") else (z, 1.0)
    gate_error, up_error = np.split(error, 2, 1) if linear.get("gated") else (error, 0.0)
    exact = activate(name, gate)
    if name:
        gate_error = STEEPEST * gate_error + ACTIVATION_ROUNDINGS * UNIT_ROUNDOFF * np.abs(gate)
    error = np.abs(up) * gate_error + np.abs(exact) * up_error + gate_error * up_error
    exact, error = exact * up * linear.get("act_scale", 1.0), error * np.abs(linear.get("act_scale", 1.0))
    residual = linear.get("residual", 0.0)
    error = error + rounding_bound(exact + residual, np.abs(exact) + np.abs(residual), 4, y.dtype == np.float16)
    assert y.shape == exact.shape
    excess = np.abs(y - (exact + residual)) - error
    assert excess.max() <= 0, f"off by {np.abs(y - exact - residual).max()}"  # a NaN left in y fails too
