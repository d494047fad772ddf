"""The CPU that stands in for a GPU: fibers, barriers, shuffles, the tensor-core product, half precision."""

import ctypes

import numpy as np
import pytest
from kernel_harness import SCHEDULES, build_kernels, library, need_compiler

FINISHED, DEADLOCK, LANES_MISSING = 0, 1, 2


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
def test_exchanges_without_all_lanes_are_reported(checks, schedule):
    results = np.zeros(32, np.int32)
    assert checks.check_leave(address(results), schedule) == LANES_MISSING
    np.testing.assert_array_equal(*sums(checks, schedule, has_barrier=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tensor_core_product(checks, schedule):
    rng = np.random.default_rng(schedule)
    a, b = (rng.integers(-9, 10, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    columns, c = np.ascontiguousarray(b.T), np.full((16, 8), np.nan, np.float32)
    assert checks.check_product(address(a), address(columns), address(c), schedule) == FINISHED
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))  # small integers: exact


# Where lanes hold what, as the PTX ISA has it ("Matrix fragments for mma.m16n8k16 with floating point type" and
# "ldmatrix"), and not as device.h does: element i of a lane's registers, two to a register, the low half first.
LANE = np.arange(32)[:, None]
GROUP, IN_GROUP = LANE >> 2, LANE % 4


def of_a(i):
    """(row, column) of a_i: groupID for 0 <= i < 2 and 4 <= i < 6, else groupID + 8; columns from 8 on where i >= 4."""
    row = np.where((i < 2) | ((i >= 4) & (i < 6)), GROUP, GROUP + 8)
    return row, IN_GROUP * 2 + (i & 1) + np.where(i >= 4, 8, 0)


def of_b(i):
    """(row, column) of b_i: rows from 8 on where i >= 2; column groupID."""
    return IN_GROUP * 2 + (i & 1) + np.where(i >= 2, 8, 0), GROUP + 0 * i


def of_c(i):
    """(row, column) of c_i: groupID for i < 2, else groupID + 8."""
    return np.where(i < 2, GROUP, GROUP + 8), IN_GROUP * 2 + (i & 1)


def test_tensor_core_product_has_the_registers_of_the_isa(checks):
    rng = np.random.default_rng(5)
    a, b = (rng.integers(-9, 10, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    c = rng.integers(-99, 100, (16, 8)).astype(np.float32)
    registers = [np.ascontiguousarray(matrix[place(np.arange(count)[None])]) for matrix, place, count in (
        (a, of_a, 8), (b, of_b, 4), (c, of_c, 4))]
    checks.check_product_of_registers(*map(address, registers))
    expected = a.astype(np.float32) @ b.astype(np.float32) + c
    np.testing.assert_array_equal(registers[2], expected[of_c(np.arange(4)[None])])


@pytest.mark.parametrize("is_transposed", [0, 1])
def test_ldmatrix_gives_the_registers_of_the_isa(checks, is_transposed):
    """Threads 8 i to 8 i + 7 pass the rows of matrix i. A thread gets of it two elements of row groupID, or of column
    groupID if transposed, in register i."""
    matrices = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    registers = np.zeros((32, 4, 2), np.uint16)
    checks.check_matrices(address(matrices), address(registers), is_transposed)
    lane, matrix, half = np.arange(32)[:, None, None], np.arange(4)[None, :, None], np.arange(2)[None, None]
    along, across = lane >> 2, lane % 4 * 2 + half
    expected = matrices[matrix, across, along] if is_transposed else matrices[matrix, along, across]
    np.testing.assert_array_equal(registers, expected)


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
