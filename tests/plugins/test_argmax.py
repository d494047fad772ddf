"""The greedy choice on the CPU against numpy's argmax, exactly."""

import ctypes

import numpy as np
import pytest
from kernel_harness import SCHEDULES, KernelError, call, guarded, pointer


class ArgmaxArguments(ctypes.Structure):
    """As in sampling/kernel.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "tokens", "best", "finished")),
        *((name, ctypes.c_int) for name in ("rows", "size", "splits")),
    )


def run(logits, splits=1, schedule=0):
    """int64 [rows] of float32 logits [rows, size]; the workspace holds what could win."""
    rows, size = logits.shape
    best = np.full((rows, max(splits, 1)), 2**64 - 1, np.uint64)
    tensors = [guarded(each) for each in (logits, np.full(rows, -1), best, np.zeros(rows, np.uint32))]
    call("edge_awq_argmax", ArgmaxArguments(*map(pointer, tensors), rows, size, splits), schedule)
    assert not tensors[3].any()
    return tensors[1]


@pytest.mark.parametrize("splits", [1, 5, 40])
@pytest.mark.parametrize("size", [1, 31, 256, 257, 5003])
def test_random_logits(rng, size, splits):
    logits = rng.standard_normal((3, size)).astype(np.float32)
    np.testing.assert_array_equal(run(logits, splits), logits.argmax(1))


@pytest.mark.parametrize("place", [0, 31, 32, 255, 256, 1999])
def test_every_place_can_win(place):
    logits = np.full((1, 2000), -7, np.float32)
    logits[0, place] = -6.9999995
    assert run(logits, splits=3) == [place]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_first_of_equals_wins(rng, schedule):
    logits = rng.integers(-3, 3, (4, 3000)).astype(np.float32)
    np.testing.assert_array_equal(run(logits, 4, schedule), logits.argmax(1))


@pytest.mark.parametrize("values", [
    [-0.0, 0.0], [0.0, -0.0], [-np.inf, -np.inf], [-np.inf, -3e38], [1e-45, 0], [-1e-45, 0], [np.inf, 3e38],
    [1, np.nan, np.inf], [np.nan, np.nan], [-np.nan, 1], [-2, -1],
], ids=str)
def test_special_values(values):
    logits = np.array([values], np.float32)
    token = logits.argmax()
    assert run(logits) == [token + (0 if np.isfinite(logits[0, token]) else 1 << 32)]


@pytest.mark.parametrize(("size", "splits", "reason"), [(0, 1, "size = 0"), (5, 0, "splits = 0"), (5, 1025, "1025")])
def test_refusals_name_the_value(size, splits, reason):
    with pytest.raises(KernelError, match=reason):
        run(np.zeros((1, size), np.float32), splits)
