"""The int4 GEMVs on the CPU against float64: every nibble, every ragged edge, outliers, non-finite numbers."""

import numpy as np
import pytest
import torch
from kernel_harness import SCHEDULES, KernelError, call
from matmul_harness import GEMV_ROWS, IntArguments, IntMatrix, activations, assert_product, random_matrix

from edge_awq.quantize.int4 import IntGrid, dequantize, quantize

GROUP_SIZES = (128, 64)
WARPS, CHUNK = 8, 128
SHARED_BYTES = 40 * 1024  # of x, up to which its rows lie in shared memory


def assert_exact_but_for_rounding(y, matrix, x, **linear):
    """A term is rounded with each later one of its group, as the group's sums are put together, with each later chunk
    of its warp, over warps and groups, and with the bias."""
    chunks = -(-x.shape[1] // CHUNK)
    roundings = matrix.group_size + 3 + -(-chunks // WARPS) + CHUNK // matrix.group_size * WARPS + 1
    assert_product(y, matrix, x, roundings, **linear)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rows", range(1, 9))
def test_every_number_of_rows(rng, rows, group_size):
    matrix, x = random_matrix(rng, 20, 320, group_size), activations(rng, rows, 320)
    assert_exact_but_for_rounding(matrix.matmul(x), matrix, x)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("N", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("K", [64, 128, 192, 1024 + 64, 4544], ids=lambda K: f"K{K}")
def test_ragged_shapes(rng, N, K, group_size):
    matrix, x = random_matrix(rng, N, K, group_size), activations(rng, 3, K)
    assert_exact_but_for_rounding(matrix.matmul(x), matrix, x)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_every_nibble_with_every_zero_point_in_every_place(group_size):
    """One-hot activations read single weights, and these have few bits: the results are exact."""
    place = np.arange(128)
    value, zero = np.divmod(np.arange(256), 16)
    q = ((value[:, None] + place) % 16).astype(np.uint8)  # every value in every place, for every zero point
    zeros = np.repeat(zero[:, None], 128 // group_size, axis=1).astype(np.uint8)
    matrix = IntMatrix(q, zeros, np.full(zeros.shape, 0.25, np.float16), group_size)
    for places in place.reshape(-1, 8):
        x = np.zeros((8, 128), np.float16)
        x[np.arange(8), places] = 2
        np.testing.assert_array_equal(matrix.matmul(x), 2 * matrix.weights[:, places].T)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rows", [1, 8])
def test_bias(rng, rows, group_size):
    matrix, x = random_matrix(rng, 37, 256, group_size), activations(rng, rows, 256)
    bias = rng.standard_normal(37).astype(np.float16)
    assert_exact_but_for_rounding(matrix.matmul(x, bias=bias), matrix, x, bias=bias)


def test_logits_keep_the_bits_of_the_sum(rng):
    matrix, x = random_matrix(rng, 37, 256, 128), activations(rng, 3, 256)
    logits = matrix.matmul(x, dtype=np.float32)
    assert_exact_but_for_rounding(logits, matrix, x)
    np.testing.assert_array_equal(logits.astype(np.float16), matrix.matmul(x))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_a_long_row_with_outliers(rng, group_size):
    """The accuracy the project promises: 1e-3 of the row's L2 norm at K = 28672 with activations 100 times the rest."""
    matrix, x = random_matrix(rng, 32, 28672, group_size), activations(rng, 1, 28672, outliers=30)
    y, exact = matrix.matmul(x), x.astype(np.float64) @ matrix.weights.T
    assert np.abs(y - exact).max() <= 1e-3 * np.linalg.norm(exact)
    assert_exact_but_for_rounding(y, matrix, x)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("K", [4096, 4096 - 64], ids=lambda K: f"K{K}")
def test_rows_too_long_for_shared_memory_give_the_same_bits(rng, K, group_size):
    matrix, x = random_matrix(rng, 20, K, group_size), activations(rng, 4, K, outliers=3)
    bias = rng.standard_normal(20).astype(np.float16)
    more = np.vstack([x, np.zeros((GEMV_ROWS - len(x), K), np.float16)])
    assert x.nbytes <= SHARED_BYTES < more.nbytes
    shared = matrix.matmul(x, bias=bias)
    assert_exact_but_for_rounding(shared, matrix, x, bias=bias)
    np.testing.assert_array_equal(shared, matrix.matmul(more, bias=bias)[: len(x)])


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("special", [np.nan, np.inf], ids=str)
def test_non_finite_activations_stay_alone_in_long_rows(rng, special, group_size):
    matrix, x = random_matrix(rng, 18, 4032, group_size), activations(rng, 8, 4032)
    clean = matrix.matmul(x)
    x[4, 4000] = special
    y = matrix.matmul(x)
    assert np.isnan(y[4]).all()
    np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_activations_reach_their_own_row_only(rng, special, group_size):
    matrix, x = random_matrix(rng, 18, 320, group_size), activations(rng, 6, 320)
    clean = matrix.matmul(x)
    x[4, 300] = special
    y = matrix.matmul(x)
    assert np.isnan(y[4]).all()  # inf - inf: integers and zero points are multiplied apart
    np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_sums_beyond_half_precision_become_infinite(rng, group_size):
    matrix = random_matrix(rng, 16, 128, group_size)
    x = np.full((1, 128), 60000, np.float16)
    exact = x.astype(np.float64) @ matrix.weights.T
    assert (np.isinf(matrix.matmul(x)) == (np.abs(exact) >= 65520)).all() and (np.abs(exact) >= 65520).any()


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rows", [1, 5])
def test_same_bits_whatever_the_order_of_threads(rng, rows, group_size):
    matrix, x = random_matrix(rng, 40, 2112, group_size), activations(rng, rows, 2112, outliers=3)
    first, *others = (matrix.matmul(x, schedule=schedule).tobytes() for schedule in (*SCHEDULES, SCHEDULES[0]))
    assert all(other == first for other in others)


def test_a_row_does_not_depend_on_the_rows_beside_it(rng):
    """Speculated tokens must get the logits they would get alone."""
    matrix, x = random_matrix(rng, 17, 704, 128), activations(rng, 8, 704)
    np.testing.assert_array_equal(matrix.matmul(x), np.vstack([matrix.matmul(row[None]) for row in x]))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_reads_what_quantize_packs(rng, group_size):
    weight = torch.from_numpy(rng.standard_normal((24, 384)).astype(np.float32))
    packed, _ = quantize("q", weight, IntGrid(bits=4, group_size=group_size))
    groups = packed.scales.shape[1]
    unpacked = [np.stack([each & 15, each >> 4], 2).reshape(24, -1) for each in (packed.qweight.numpy(),
                                                                                 packed.zero_points.numpy())]
    matrix = IntMatrix(unpacked[0], unpacked[1][:, :groups], packed.scales.numpy(), group_size)
    np.testing.assert_array_equal(matrix.weights.astype(np.float32), dequantize(packed).numpy())
    x = activations(rng, 2, 384)
    assert_exact_but_for_rounding(matrix.matmul(x), matrix, x)


@pytest.mark.parametrize(("change", "reason"), [
    ({"rows": 0}, "rows = 0"),
    ({"group_size": 32}, "group_size = 32"),
    ({"K": 96}, "K = 96"),
    ({"N": 0}, "N = 0"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refusals_name_the_value(rng, change, reason):
    shape = {"rows": 1, "N": 4, "K": 128, "group_size": 128} | change
    matrix = IntMatrix(*(np.zeros((shape["N"], width), kind) for width, kind in
                          ((shape["K"], np.uint8), (1, np.uint8), (1, np.float16))), shape["group_size"])
    with pytest.raises(KernelError, match=reason):
        matrix.matmul(activations(rng, shape["rows"], shape["K"]))


@pytest.mark.parametrize(("change", "reason"), [
    ({"x": 4098}, "x at 0x1002 is not aligned to 16 bytes"),
    ({"qweight": 4104}, "qweight at 0x1008 is not aligned to 16 bytes"),
    ({"scales": None}, "a tensor of W is null"),
    ({"logits": 4096}, "one of y and logits must be null"),
    ({"y": None}, "one of y and logits must be null"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_pointers_are_checked(change, reason):
    pointers = {"x": 4096, "qweight": 4096, "scales": 4096, "zero_points": 4096, "y": 4096} | change
    with pytest.raises(KernelError, match=reason):
        call("edge_awq_int4_matmul", IntArguments(**pointers, rows=1, K=128, N=16, group_size=128, splits=1))
