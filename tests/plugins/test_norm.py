"""Norms on the CPU against float64, with the residual stream's addition."""

import ctypes

import numpy as np
import pytest
from kernel_harness import (
    HALF_ROUNDOFF,
    HALF_SMALLEST,
    SCHEDULES,
    UNIT_ROUNDOFF,
    KernelError,
    call,
    guarded,
    pointer,
    poisoned,
)

EPSILON = 1e-5
KINDS = ("rms_norm", "layer_norm")
THREADS, VALUES, WARPS = 512, 8, 16


class NormArguments(ctypes.Structure):
    """As in norm/kernel.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "delta", "weight", "bias", "hidden", "y")),
        *((name, ctypes.c_int) for name in ("rows", "size")),
        ("epsilon", ctypes.c_float),
    )


def run(kind, x, weight, delta=None, bias=None, **settings):
    """(y, hidden), both float16 [rows, size]; hidden is None without delta. Settings: in_place, schedule."""
    tensors = [None if each is None else guarded(each) for each in (x, delta, weight, bias)]
    y, hidden = poisoned(*x.shape), None
    if delta is not None:
        hidden = tensors[0] if settings.get("in_place") else poisoned(*x.shape)
    call(f"edge_awq_{kind}", NormArguments(*map(pointer, (*tensors, hidden, y)), *x.shape, EPSILON),
         settings.get("schedule", 0))
    return y, hidden


def assert_normed(kind, y, hidden, weight, bias=None):
    """A term of a sum is rounded with each later one of its thread, five times over lanes and with every warp. The sum
    of squares has no cancellation, so its square root is off by half of that, relatively; the mean by as much of the
    mean absolute value; seven more roundings follow, and that to fp16."""
    h, w = hidden.astype(np.float64), weight.astype(np.float64)
    roundings = VALUES * -(-h.shape[1] // (THREADS * VALUES)) + 5 + WARPS + 1
    mean = h.mean(1, keepdims=True) if kind == "layer_norm" else 0.0
    factor = 1 / np.sqrt(((h - mean) ** 2).mean(1, keepdims=True) + EPSILON)
    product = (h - mean) * factor * w
    exact = product if bias is None else product + bias
    off = np.abs(product) * (roundings + 7) + np.abs(exact)
    if kind == "layer_norm":
        off += np.abs(h).mean(1, keepdims=True) * factor * np.abs(w) * (roundings + 2)
    off *= 1.01 * UNIT_ROUNDOFF
    excess = np.abs(y - exact) - (off + HALF_ROUNDOFF * (np.abs(exact) + off) + HALF_SMALLEST / 2)
    assert excess.max() <= 0, f"off by {np.abs(y - exact).max()}"


def tensors(rng, rows, size):
    x, delta = (rng.standard_normal((rows, size)).astype(np.float16) for _ in range(2))
    weight, bias = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
    return x, delta, weight, bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [8, 64, 4088, 4096, 4104, 8192])
def test_without_addition(rng, size, rows, kind):
    x, _, weight, _ = tensors(rng, rows, size)
    y, _ = run(kind, x, weight)
    assert_normed(kind, y, x, weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_place", [False, True])
def test_with_addition(rng, kind, in_place):
    x, delta, weight, _ = tensors(rng, 2, 4544)
    y, hidden = run(kind, x, weight, delta, in_place=in_place)
    np.testing.assert_array_equal(hidden, (x.astype(np.float32) + delta).astype(np.float16))
    assert_normed(kind, y, hidden, weight)


def test_layer_norm_has_a_bias(rng):
    x, delta, weight, bias = tensors(rng, 2, 256)
    y, hidden = run("layer_norm", x, weight, delta, bias)
    assert_normed("layer_norm", y, hidden, weight, bias)


def test_a_mean_far_from_zero(rng):
    """Where a difference of two large sums would lose the variance."""
    x, _, weight, _ = tensors(rng, 1, 4096)
    x += np.float16(1000)
    y, _ = run("layer_norm", x, weight)
    assert_normed("layer_norm", y, x, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_outliers(rng, kind):
    x, _, weight, _ = tensors(rng, 1, 4096)
    x[0, ::500] *= 100
    y, _ = run(kind, x, weight)
    assert_normed(kind, y, x, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    y, _ = run(kind, np.zeros((1, 64), np.float16), np.ones(64, np.float32))
    assert (y == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_stays_in_its_row(rng, kind):
    x, _, weight, _ = tensors(rng, 3, 128)
    clean, _ = run(kind, x, weight)
    x[1, 77] = np.nan
    y, _ = run(kind, x, weight)
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_whatever_the_order_of_threads(rng, kind):
    x, delta, weight, _ = tensors(rng, 2, 8192)
    first, *others = (run(kind, x, weight, delta, schedule=schedule)[0].tobytes() for schedule in SCHEDULES)
    assert all(other == first for other in others)


def test_refusals_name_the_value(rng):
    x, delta, weight, bias = tensors(rng, 1, 12)
    with pytest.raises(KernelError, match="size = 12"):
        run("rms_norm", x, weight)
    x, delta, weight, bias = tensors(rng, 1, 16)
    with pytest.raises(KernelError, match="bias"):
        run("rms_norm", x, weight, delta, bias)
