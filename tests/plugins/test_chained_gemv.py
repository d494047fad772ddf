"""The int4 GEMV with short chains in fp16 on the CPU: against float64, and against its own roundings done in numpy."""

import numpy as np
import pytest
from kernel_harness import SCHEDULES, UNIT_ROUNDOFF, KernelError
from matmul_harness import IntMatrix, activations, assert_product, random_matrix

GROUP_SIZES = (128, 64)
CHAIN, CHUNK, LANE = 16, 128, 32
HALF_IN_FLOAT = 2**13  # so many roundings to fp32 are one to fp16
LARGEST_K = 32768  # more does not fit shared memory


def roundings(K):
    """Of a term, as assert_product() counts them: in its chain, then in fp32 over chunks, lanes, warps and the end."""
    return CHAIN * HALF_IN_FLOAT + K // CHUNK + 64


def chained(matrix, x, **linear):
    return matrix.matmul(x, fp16_chains=1, **linear)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("N", [1, 17, 33])
@pytest.mark.parametrize("K", [64, 128, 192, 1088, 4544], ids=lambda K: f"K{K}")
def test_ragged_shapes(rng, N, K, group_size):
    matrix, x = random_matrix(rng, N, K, group_size), activations(rng, 1, K)
    assert_product(chained(matrix, x), matrix, x, roundings(K))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_every_nibble_with_every_zero_point(group_size):
    """One-hot activations read single weights, exactly; 26 of 128 places are in every word, byte and nibble."""
    place = np.arange(128)
    value, zero = np.divmod(np.arange(256), 16)
    q = ((value[:, None] + place) % 16).astype(np.uint8)
    zeros = np.repeat(zero[:, None], 128 // group_size, axis=1).astype(np.uint8)
    matrix = IntMatrix(q, zeros, np.full(zeros.shape, 0.25, np.float16), group_size)
    for each in place[::5]:
        x = np.zeros((1, 128), np.float16)
        x[0, each] = 2
        np.testing.assert_array_equal(chained(matrix, x)[0], 2 * matrix.weights[:, each])


def emulated(matrix, x):
    """y in float64 but for the chains: numpy's own halves, in the kernel's order."""
    N, K = matrix.shape
    zeros = np.repeat(matrix.zeros, matrix.group_size, 1)[:, :K].astype(np.float64)
    scales = np.repeat(matrix.scales, matrix.group_size, 1)[:, :K:LANE].astype(np.float64)
    unit = 2.0 ** (np.floor(np.log2(np.abs(x).max().astype(np.float64))) - 7)
    w, scaled = matrix.q - zeros, (x[0].astype(np.float64) / unit).astype(np.float16).astype(np.float64)
    terms = (w * scaled).reshape(N, -1, 4, 2, 4)  # spans of a lane, words, upper and lower nibbles of a pair's halves
    chains = np.zeros((N, K // LANE, 2), np.float16)
    for word in range(4):
        for nibble in range(4):
            chains = (chains.astype(np.float64) + terms[:, :, word, :, nibble]).astype(np.float16)
    return (chains.astype(np.float64).sum(2) * scales).sum(1) * unit


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("outliers", [0, 7])
def test_rounds_where_it_says(rng, group_size, outliers):
    """What is left beside the chains' own roundings is fp32."""
    matrix, x = random_matrix(rng, 40, 2112, group_size), activations(rng, 1, 2112, outliers)
    y, expected = chained(matrix, x, dtype=np.float32)[0], emulated(matrix, x)
    bound = 64 * UNIT_ROUNDOFF * (np.abs(x.astype(np.float64)) @ np.abs(matrix.weights).T)[0]
    assert (np.abs(y - expected) <= bound).all()
    assert (np.abs(y - x[0].astype(np.float64) @ matrix.weights.T) > bound).any()


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("outliers", [0, 30])
def test_a_long_row(rng, group_size, outliers):
    """Still 1e-3 of the row's L2 norm at K = 28672, outliers of 100 times the rest or not."""
    matrix, x = random_matrix(rng, 32, 28672, group_size), activations(rng, 1, 28672, outliers)
    y, exact = chained(matrix, x, dtype=np.float32), x.astype(np.float64) @ matrix.weights.T
    assert np.abs(y - exact).max() <= 1e-3 * np.linalg.norm(exact)
    assert_product(y, matrix, x, roundings(28672))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_a_power_of_two_more_or_less_changes_no_bit(rng, group_size):
    """The row is brought into the same range first, from subnormal halves as from the largest."""
    matrix, x = random_matrix(rng, 20, 320, group_size), rng.integers(-500, 500, (1, 320)).astype(np.float16)
    logits = chained(matrix, x, dtype=np.float32)
    for exponent in (-24, -10, 3, 6):
        scaled = (x * 2.0**exponent).astype(np.float16)
        np.testing.assert_array_equal(chained(matrix, scaled, dtype=np.float32), logits * 2.0**exponent)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_no_chain_overflows(group_size):
    """16 products of 15 and 65504 are 240 times what a half holds; the sum is right as long as it is one itself."""
    q, zeros = np.full((16, 256), 15, np.uint8), np.zeros((16, 256 // group_size), np.uint8)
    matrix = IntMatrix(q, zeros, np.full(zeros.shape, 2.0**-12, np.float16), group_size)
    x = np.full((1, 256), 65504, np.float16)
    logits, exact = chained(matrix, x, dtype=np.float32), 256 * 15 * 65504 * 2.0**-12
    np.testing.assert_allclose(logits, exact, rtol=CHAIN * 2.0**-11)
    larger = IntMatrix(q, zeros, np.full(zeros.shape, 2.0**-11, np.float16), group_size)
    assert np.isposinf(chained(larger, x)).all()  # as with sums in fp32: past 65504 a half is infinite
    assert np.isneginf(chained(larger, -x)).all()


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_activations(rng, special, group_size):
    """What they become does not hang on the finite ones beside them, however large."""
    matrix, x = random_matrix(rng, 18, 320, group_size), activations(rng, 1, 320)
    x[0, [17, 300]] = 65504, special
    with np.errstate(invalid="ignore"):
        expected = special * matrix.weights[:, 300]
    np.testing.assert_array_equal(chained(matrix, x)[0], expected.astype(np.float16))


def test_zeros(rng):
    matrix = random_matrix(rng, 18, 192, 128)
    np.testing.assert_array_equal(chained(matrix, np.zeros((1, 192), np.float16)), np.zeros((1, 18)))


def test_same_bits_whatever_the_order_of_threads(rng):
    matrix, x = random_matrix(rng, 40, 2112, 64), activations(rng, 1, 2112, outliers=3)
    first, *others = (chained(matrix, x, schedule=schedule).tobytes() for schedule in (*SCHEDULES, SCHEDULES[0]))
    assert all(other == first for other in others)


@pytest.mark.parametrize("norm", [None, "rms", "layer"])
def test_what_surrounds_it(rng, norm):
    matrix, x = random_matrix(rng, 2 * 21, 448, 64), activations(rng, 1, 448)
    linear = {"activation": "silu", "gated": 1, "bias": rng.standard_normal(42).astype(np.float16),
              "act_scale": np.exp(rng.standard_normal(21)).astype(np.float32),
              "residual": rng.standard_normal((1, 21)).astype(np.float16)}
    if norm:
        linear |= {"norm": norm, "norm_weight": rng.standard_normal(448).astype(np.float32)}
    if norm == "layer":
        linear["norm_bias"] = rng.standard_normal(448).astype(np.float32)
    assert_product(chained(matrix, x, **linear), matrix, x, roundings(448), **linear)


@pytest.mark.parametrize(("rows", "K"), [(2, 192), (8, 192), (9, 192), (1, LARGEST_K + 64)])
def test_elsewhere_sums_are_fp32(rng, rows, K):
    """More rows, and rows that do not fit: the same bits as without."""
    matrix, x = random_matrix(rng, 16, K, 64), activations(rng, rows, K)
    np.testing.assert_array_equal(chained(matrix, x), matrix.matmul(x))


def test_the_longest_row_that_fits(rng):
    matrix, x = random_matrix(rng, 16, LARGEST_K, 128), activations(rng, 1, LARGEST_K)
    assert_product(chained(matrix, x), matrix, x, roundings(LARGEST_K))
    assert (chained(matrix, x) != matrix.matmul(x)).any()


def test_any_other_number_is_refused(rng):
    with pytest.raises(KernelError, match="fp16_chains = 2, not 0 or 1"):
        random_matrix(rng, 16, 64, 64).matmul(activations(rng, 1, 64), fp16_chains=2)
