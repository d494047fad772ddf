"""A GEMV reads every weight from memory once, whatever the number of rows: the bound it is measured against."""

import pytest
from kernel_harness import library
from matmul_harness import Fp16Matrix, activations, random_matrix


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(("matrix", "bytes_per_weight"), [
    (lambda rng: random_matrix(rng, 32, 640, 128), 0.5),
    (lambda rng: random_matrix(rng, 32, 640, 64), 0.5),
    (lambda rng: random_matrix(rng, 32, 640, 128, bits=8), 1),
    (lambda rng: Fp16Matrix(activations(rng, 32, 640)), 2),
], ids=["int4-g128", "int4-g64", "int8", "fp16"])
def test_every_weight_is_read_once(rng, matrix, bytes_per_weight, rows):
    matrix(rng).matmul(activations(rng, rows, 640))
    assert library().edge_awq_streamed_bytes() == 32 * 640 * bytes_per_weight
