"""The int8 GEMV on the CPU against float64."""

import numpy as np
import pytest
from kernel_harness import SCHEDULES, KernelError
from matmul_harness import IntMatrix, activations, assert_product, random_matrix
from onnx.reference import ReferenceEvaluator

from edge_awq.export import ops

GROUP_SIZES = (128, 64)
WARPS, CHUNK = 8, 64


def assert_exact_but_for_rounding(y, matrix, x, **linear):
    """A term is rounded with each later one of its chunk, with each later chunk of its warp, over warps, and with the
    bias."""
    chunks = x.shape[1] // CHUNK
    assert_product(y, matrix, x, CHUNK + -(-chunks // WARPS) + WARPS + 1, **linear)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rows", range(1, 9))
def test_every_number_of_rows(rng, rows, group_size):
    matrix, x = random_matrix(rng, 20, 320, group_size, bits=8), activations(rng, rows, 320)
    assert_exact_but_for_rounding(matrix.matmul(x), matrix, x)
    bias = rng.standard_normal(20).astype(np.float16)
    assert_exact_but_for_rounding(matrix.matmul(x, bias=bias, dtype=np.float32), matrix, x, bias=bias)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("N", [1, 16, 17, 33])
@pytest.mark.parametrize("K", [64, 192, 1536, 4544], ids=lambda K: f"K{K}")
def test_ragged_shapes(rng, N, K, group_size):
    matrix, x = random_matrix(rng, N, K, group_size, bits=8), activations(rng, 3, K)
    assert_exact_but_for_rounding(matrix.matmul(x), matrix, x)


@pytest.mark.parametrize("zero", [0, 1, 128, 255])
def test_every_byte_in_every_place(zero):
    """One-hot activations read single weights, and these have few bits: the results are exact."""
    q = (np.arange(256)[:, None] + np.arange(64)).astype(np.uint8)
    matrix = IntMatrix(q, np.full((256, 1), zero, np.uint8), np.full((256, 1), 0.25, np.float16), 64, bits=8)
    for places in np.arange(64).reshape(-1, 8):
        x = np.zeros((8, 64), np.float16)
        x[np.arange(8), places] = 2
        np.testing.assert_array_equal(matrix.matmul(x), 2 * matrix.weights[:, places].T)


def test_a_long_row_with_outliers(rng):
    matrix, x = random_matrix(rng, 16, 28672, 128, bits=8), activations(rng, 1, 28672, outliers=30)
    assert_exact_but_for_rounding(matrix.matmul(x, dtype=np.float32), matrix, x)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_activations_reach_their_own_row_only(rng, special):
    matrix, x = random_matrix(rng, 18, 320, 64, bits=8), activations(rng, 6, 320)
    clean = matrix.matmul(x)
    x[4, 300] = special
    y = matrix.matmul(x)
    with np.errstate(invalid="ignore"):
        expected = special * matrix.weights[:, 300]
    np.testing.assert_array_equal(y[4], expected.astype(np.float16))
    np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))


def test_same_bits_whatever_the_order_of_threads(rng):
    matrix, x = random_matrix(rng, 40, 2112, 128, bits=8), activations(rng, 5, 2112, outliers=3)
    first, *others = (matrix.matmul(x, schedule=schedule).tobytes() for schedule in (*SCHEDULES, SCHEDULES[0]))
    assert all(other == first for other in others)


def test_means_what_the_function_body_means(rng):
    matrix, x = random_matrix(rng, 24, 384, 128, bits=8), activations(rng, 5, 384)
    y, = ReferenceEvaluator(ops.function(ops.INT8_MATMUL)).run(
        None, {"x": x.astype(np.float32), "qweight": matrix.q, "scales": matrix.scales, "zero_points": matrix.zeros},
        attributes={"K": 384, "N": 24, "group_size": 128})
    kernel = matrix.matmul(x, dtype=np.float32)
    assert np.linalg.norm(kernel - y) <= 2.0**-16 * np.linalg.norm(y)  # both sum in fp32


@pytest.mark.parametrize(("rows", "K", "group_size", "reason"), [
    (0, 64, 64, "rows = 0"), (1, 96, 64, "K = 96"), (1, 64, 32, "group_size = 32")])
def test_refusals_name_the_value(rng, rows, K, group_size, reason):
    with pytest.raises(KernelError, match=reason):
        random_matrix(rng, 4, K, group_size, bits=8).matmul(activations(rng, rows, K))
