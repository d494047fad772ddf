"""A matmul reads every weight from memory once, whatever the number of rows: the bound it is measured against."""

from dataclasses import dataclass

import numpy as np
import pytest
from kernel_harness import library
from matmul_harness import Fp16Matrix, activations, random_matrix


@pytest.mark.parametrize("rows", [1, 8, 16, 64])
@pytest.mark.parametrize(("matrix", "bytes_per_weight"), [
    (lambda rng: random_matrix(rng, 32, 640, 128), 0.5),
    (lambda rng: random_matrix(rng, 32, 640, 64), 0.5),
    (lambda rng: random_matrix(rng, 32, 640, 128, bits=8), 1),
    (lambda rng: Fp16Matrix(activations(rng, 32, 640)), 2),
], ids=["int4-g128", "int4-g64", "int8", "fp16"])
def test_every_weight_is_read_once(rng, matrix, bytes_per_weight, rows):
    matrix(rng).matmul(activations(rng, rows, 640))
    assert library().edge_awq_streamed_bytes() == 32 * 640 * bytes_per_weight


def matrix_bytes(N, K, group_size):
    """What a launch reads of W [N, K]: weights, scales, zero points; int4, or fp16 where there are no groups."""
    if group_size is None:
        return 2 * N * K
    groups = -(-K // group_size)
    return N * K // 2 + N * groups * 2 + N * -(-groups // 2)


@pytest.mark.parametrize(("N", "K", "group_size"), [(5, 128, 128), (7, 192, 128), (3, 192, 64), (4, 320, 64)])
def test_the_model_counts_what_a_matrix_has(rng, N, K, group_size):
    stored = random_matrix(rng, N, K, group_size).stored_tensors.values()
    assert matrix_bytes(N, K, group_size) == sum(each.nbytes for each in stored)


@dataclass(frozen=True)
class Model:
    """A decoder's matrices: [N, K] in a layer, and the head's."""

    layers: int
    matrices: tuple[tuple[int, int], ...]
    head: tuple[int, int]

    def gigabytes(self, group_size, head_group_size):
        """Read per token."""
        layer = sum(matrix_bytes(*shape, group_size) for shape in self.matrices)
        return (self.layers * layer + matrix_bytes(*self.head, head_group_size)) / 1e9


def plain(layers, hidden, inner, vocabulary, gated, qkv=None):
    up = (2 * inner if gated else inner, hidden)
    return Model(layers, ((qkv or 3 * hidden, hidden), (hidden, hidden), up, (hidden, inner)), (vocabulary, hidden))


# GB per token with an fp16 head, with an int4 one, and all in fp16: computed independently, from parameter counts.
MODELS = {
    "llama-2-7b": (plain(32, 4096, 11008, 32000, True), 128, (3.627, 3.433, 13.22)),
    "llama-2-13b": (plain(40, 5120, 13824, 32000, True), 128, (6.920, 6.678, 25.70)),
    "mpt-7b": (plain(32, 4096, 16384, 50432, False), 128, (3.761, 3.455, 13.30)),
    "mpt-30b": (plain(48, 7168, 28672, 50432, False), 128, (16.100, 15.565, 59.91)),
    "falcon-7b": (plain(32, 4544, 18176, 65024, False, qkv=4672), 64, (4.163, 3.732, 13.84)),
}


@pytest.mark.parametrize("name", MODELS)
def test_bytes_per_token(name):
    model, group_size, expected = MODELS[name]
    counted = [model.gigabytes(group_size, None), model.gigabytes(group_size, group_size), model.gigabytes(None, None)]
    np.testing.assert_allclose(counted, expected, rtol=0.005)


def test_ragged_groups_of_128_make_the_smallest_falcon():
    model, *_ = MODELS["falcon-7b"]
    layers = model.gigabytes(128, None) - matrix_bytes(*model.head, None) / 1e9
    np.testing.assert_allclose(layers, 3.443, rtol=0.005)
