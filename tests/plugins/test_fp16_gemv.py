"""The fp16 GEMV on the CPU against float64."""

import numpy as np
import pytest
from kernel_harness import SCHEDULES, KernelError
from matmul_harness import Fp16Matrix, activations, assert_product
from matmul_harness import random_fp16_matrix as random_matrix

WARPS, CHUNK = 8, 64


def assert_exact_but_for_rounding(y, matrix, x, **linear):
    """A term is rounded with each later one of its chunk, with each later chunk of its warp, over warps, and with the
    bias."""
    chunks = x.shape[1] // CHUNK
    assert_product(y, matrix, x, CHUNK + -(-chunks // WARPS) + WARPS + 1, **linear)


@pytest.mark.parametrize("rows", range(1, 9))
def test_every_number_of_rows(rng, rows):
    matrix, x, bias = random_matrix(rng, 20, 320), activations(rng, rows, 320), rng.standard_normal(20)
    assert_exact_but_for_rounding(matrix.matmul(x), matrix, x)
    bias = bias.astype(np.float16)
    assert_exact_but_for_rounding(matrix.matmul(x, bias=bias), matrix, x, bias=bias)


@pytest.mark.parametrize("N", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("K", [64, 192, 1536, 4544], ids=lambda K: f"K{K}")
def test_ragged_shapes(rng, N, K):
    matrix, x = random_matrix(rng, N, K), activations(rng, 3, K)
    assert_exact_but_for_rounding(matrix.matmul(x), matrix, x)


def test_every_place_is_read_once():
    """One-hot activations read single weights, exactly."""
    stored = np.arange(16 * 64, dtype=np.float16).reshape(16, 64)
    for places in np.arange(64).reshape(-1, 8):
        x = np.zeros((8, 64), np.float16)
        x[np.arange(8), places] = 1
        np.testing.assert_array_equal(Fp16Matrix(stored).matmul(x), stored[:, places].T)


def test_logits_keep_the_bits_of_the_sum(rng):
    matrix, x = random_matrix(rng, 37, 256), activations(rng, 3, 256)
    logits = matrix.matmul(x, dtype=np.float32)
    assert_exact_but_for_rounding(logits, matrix, x)
    np.testing.assert_array_equal(logits.astype(np.float16), matrix.matmul(x))


def test_a_long_row_with_outliers(rng):
    matrix, x = random_matrix(rng, 16, 28672), activations(rng, 1, 28672, outliers=30)
    y, exact = matrix.matmul(x), x.astype(np.float64) @ matrix.weights.T
    assert np.abs(y - exact).max() <= 1e-3 * np.linalg.norm(exact)
    assert_exact_but_for_rounding(y, matrix, x)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_activations_reach_their_own_row_only(rng, special):
    matrix, x = random_matrix(rng, 18, 320), activations(rng, 6, 320)
    clean = matrix.matmul(x)
    x[4, 300] = special
    y = matrix.matmul(x)
    np.testing.assert_array_equal(y[4], special * matrix.weights[:, 300])
    np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))


def test_non_finite_weights_reach_their_own_output_only(rng):
    matrix, x = random_matrix(rng, 18, 320), activations(rng, 2, 320)
    clean = matrix.matmul(x)
    matrix.stored[[7, 17], [3, 319]] = np.nan, np.inf
    y = matrix.matmul(x)
    assert np.isnan(y[:, 7]).all() and np.isinf(y[:, 17]).all()
    np.testing.assert_array_equal(np.delete(y, [7, 17], 1), np.delete(clean, [7, 17], 1))


def test_same_bits_whatever_the_order_of_threads(rng):
    matrix, x = random_matrix(rng, 40, 2112), activations(rng, 5, 2112, outliers=3)
    first, *others = (matrix.matmul(x, schedule=schedule).tobytes() for schedule in (*SCHEDULES, SCHEDULES[0]))
    assert all(other == first for other in others)


@pytest.mark.parametrize(("rows", "N", "K", "reason"), [
    (0, 4, 64, "rows = 0"), (1, 0, 64, "N = 0"), (1, 4, 32, "K = 32"),
])
def test_refusals_name_the_value(rng, rows, N, K, reason):
    with pytest.raises(KernelError, match=reason):
        Fp16Matrix(np.zeros((N, K), np.float16)).matmul(activations(rng, rows, K))
