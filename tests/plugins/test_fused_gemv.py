"""GEMVs with what a decoder layer has around them: a norm before, a gate, activation, scale and residual after."""

import numpy as np
import pytest
from kernel_harness import SCHEDULES, KernelError, library
from matmul_harness import ACTIVATIONS, activations, assert_product, random_fp16_matrix, random_matrix

FORMATS = {
    "int4-g128": lambda rng, N, K: random_matrix(rng, N, K, 128),
    "int4-g64": lambda rng, N, K: random_matrix(rng, N, K, 64),
    "int8": lambda rng, N, K: random_matrix(rng, N, K, 64, bits=8),
    "fp16": random_fp16_matrix,
}
every_format = pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
GROUP, CHUNKS_PER_WARP, WARPS = 128, 8, 8


def assert_exact_but_for_rounding(y, matrix, x, **linear):
    """As the GEMVs' own tests derive it, for the longest group and K here."""
    assert_product(y, matrix, x, GROUP + 3 + CHUNKS_PER_WARP + 2 * WARPS + 1, **linear)


def norm(rng, kind, K):
    linear = {"norm": kind, "norm_weight": rng.standard_normal(K).astype(np.float32)}
    if kind == "layer":
        linear["norm_bias"] = rng.standard_normal(K).astype(np.float32)
    return linear


@every_format
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("K", [64, 192, 2112], ids=lambda K: f"K{K}")
def test_norm_before(rng, K, rows, kind, make):
    matrix, x = make(rng, 20, K), activations(rng, rows, K, outliers=1)
    linear = norm(rng, kind, K)
    assert_exact_but_for_rounding(matrix.matmul(x, **linear), matrix, x, **linear)


def test_layer_norm_without_a_bias_and_far_from_zero(rng):
    matrix, x = random_matrix(rng, 16, 512, 128), activations(rng, 3, 512) + np.float16(100)
    linear = norm(rng, "layer", 512) | {"norm_bias": None}
    assert_exact_but_for_rounding(matrix.matmul(x, **linear), matrix, x, **linear)


@every_format
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("gated", [0, 1], ids=["plain", "gated"])
@pytest.mark.parametrize("rows", [1, 6])
def test_what_follows_a_product(rng, rows, activation, gated, make):
    matrix, x = make(rng, 2 * 21, 192), activations(rng, rows, 192)
    outputs = 21 if gated else 42
    linear = {"activation": activation, "gated": gated, "bias": rng.standard_normal(42).astype(np.float16),
              "act_scale": np.exp(rng.standard_normal(outputs)).astype(np.float32),
              "residual": rng.standard_normal((rows, outputs)).astype(np.float16)}
    assert_exact_but_for_rounding(matrix.matmul(x, **linear), matrix, x, **linear)


@every_format
def test_a_layers_mlp_in_two_launches(rng, make):
    """Norm, gate and up, and activation in one; down and the residual stream, in place, in the other."""
    x = activations(rng, 2, 256)
    gate_up, down = make(rng, 2 * 192, 256), make(rng, 256, 192)
    linear = norm(rng, "rms", 256) | {"activation": "silu", "gated": 1}
    inner = gate_up.matmul(x, **linear)
    assert_exact_but_for_rounding(inner, gate_up, x, **linear)
    y = down.matmul(inner, residual=x, in_place=True)
    assert_exact_but_for_rounding(y, down, inner, residual=x)


@every_format
@pytest.mark.parametrize("special", [np.nan, np.inf], ids=str)
def test_a_row_that_is_not_finite_stays_alone(rng, special, make):
    matrix, x = make(rng, 18, 320), activations(rng, 4, 320)
    linear = norm(rng, "rms", 320) | {"activation": "gelu"}
    clean = matrix.matmul(x, **linear)
    x[2, 300] = special
    y = matrix.matmul(x, **linear)
    assert np.isnan(y[2]).all()  # inf / inf
    np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(clean, 2, 0))


@every_format
def test_same_bits_whatever_the_order_of_threads(rng, make):
    matrix, x = make(rng, 40, 1088), activations(rng, 3, 1088, outliers=3)
    linear = norm(rng, "layer", 1088) | {"activation": "silu", "gated": 1}
    first, *others = (matrix.matmul(x, schedule=schedule, **linear).tobytes()
                      for schedule in (*SCHEDULES, SCHEDULES[0]))
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", ["int4-g128", "int8", "fp16"])
def test_no_bank_conflicts(rng, name):
    """Where all lanes take part: with eight rows, and a K of whole rounds."""
    matrix, x = FORMATS[name](rng, 16, 2048), activations(rng, 8, 2048)
    linear = norm(rng, "rms", 2048)
    library().edge_awq_count_conflicts(1)
    try:
        y = matrix.matmul(x, **linear)
    finally:
        library().edge_awq_count_conflicts(0)
    assert library().edge_awq_shared_wavefronts() > 0
    assert library().edge_awq_bank_conflicts() == 0
    assert_exact_but_for_rounding(y, matrix, x, **linear)


@pytest.mark.parametrize(("rows", "K", "change", "reason"), [
    (9, 128, {}, "rows = 9 with a norm"),
    (8, 8192, {}, "rows = 8 of K = 8192 with a norm take 131072 bytes of shared memory"),
    (1, 128, {"norm_weight": None}, "norm_weight is null"),
    (1, 128, {"norm_bias": np.zeros(128, np.float32)}, "norm = 1 has no bias"),
    (1, 128, {"norm": None}, "norm = 0, but there is a weight"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refusals_name_the_value(rng, rows, K, change, reason):
    matrix, x = random_fp16_matrix(rng, 16, K), activations(rng, rows, K)
    with pytest.raises(KernelError, match=reason):
        matrix.matmul(x, **norm(rng, "rms", K) | change)
