"""The CPU that stands in for a GPU: fibers, barriers, shuffles, the tensor-core product, half precision."""

import ctypes

import numpy as np
import pytest
from kernel_harness import SCHEDULES, build_kernels, library, need_compiler

FINISHED, DEADLOCK = 0, 1


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    need_compiler()
    source = build_kernels.HERE.parent / "tests" / "plugins" / "fibers_check.cpp"
    return ctypes.CDLL(str(build_kernels.compile_cpp(source, tmp_path_factory.mktemp("fibers") / "checks.so")))


def address(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def sums(checks, schedule, has_barrier):
    values, totals = np.arange(3 * 256, dtype=np.float32), np.zeros(3, np.float32)
    assert checks.check_sum(has_barrier, address(values), address(totals), schedule) == FINISHED
    return totals, values.reshape(3, 256).sum(1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_block_reduction(checks, schedule):
    np.testing.assert_array_equal(*sums(checks, schedule, has_barrier=True))


def test_a_missing_barrier_shows(checks):
    """What was never written is NaN; which threads come too early depends on the schedule."""
    totals, _ = sums(checks, 0, has_barrier=False)
    assert np.isnan(totals).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_threads_that_wait_for_each_other_are_reported(checks, schedule):
    assert checks.check_stuck(schedule) == DEADLOCK
    np.testing.assert_array_equal(*sums(checks, schedule, has_barrier=True))  # and the next launch is a clean one


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tensor_core_product(checks, schedule):
    rng = np.random.default_rng(schedule)
    a, b = (rng.integers(-9, 10, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    columns, c = np.ascontiguousarray(b.T), np.full((16, 8), np.nan, np.float32)
    assert checks.check_product(address(a), address(columns), address(c), schedule) == FINISHED
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))  # small integers: exact


def test_every_half_as_float():
    bits = np.arange(1 << 16, dtype=np.uint16)
    converted = np.array([library().edge_awq_float_from_half(int(each)) for each in bits], np.float32)
    np.testing.assert_array_equal(converted, bits.view(np.float16).astype(np.float32))


def test_floats_round_to_halves_as_in_numpy():
    """Every half, the middle between it and the next, and the floats on both sides of these."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves[-1] = 65536  # where the next half would be
    exact = np.concatenate([halves, (halves[:-1] + halves[1:]) / 2])
    values = np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))])
    values = np.concatenate([values, -values, np.array([1e9, np.inf, -np.inf], np.float32)])
    rounded = np.array([library().edge_awq_half_from_float(float(each)) for each in values], np.uint16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded, values.astype(np.float16).view(np.uint16))
    assert np.isnan(np.uint16(library().edge_awq_half_from_float(float("nan"))).view(np.float16))
