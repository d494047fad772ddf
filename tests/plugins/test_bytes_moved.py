"""Weights and caches are read from memory once, whatever the number of rows: the bounds of the kernels' speed."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
from attention_harness import Heads, prefill, quantized, random_step, run
from kernel_harness import PLUGINS, library
from matmul_harness import Fp16Matrix, activations, random_matrix

sys.path.append(str(PLUGINS.parent / "scripts"))

import gpu_workloads


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


@pytest.fixture
def moved():
    """name -> bytes of the last launch.

    "streamed" are the loads of cached keys and values; of these "block_read" counts each place once per block, for
    warps of a block find in its L1 what others have read. "read" and "written" are all other tensors, each place once.
    """
    library().edge_awq_count_traffic(1)
    yield lambda name: getattr(library(), f"edge_awq_{name}_bytes")()
    library().edge_awq_count_traffic(0)


def cache_bytes(heads, keys):
    """Of the fp16 keys and values of so many positions."""
    return 2 * 2 * heads.kv * keys * heads.size


def byte_step(rng, heads, past, tokens=1):
    """Over a cache of bytes, which are half of that, with scales."""
    return quantized(random_step(rng, heads, past, tokens))


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize(("rows", "tiles", "blocks"), [
    ((1, 1), 1, 1), ((7, 1), 1, 1), ((8, 1), 1, 1), ((8, 3), 3, 1), ((9, 8), 9, 1), ((16, 1), 2, 1), ((71, 1), 9, 1),
    ((72, 1), 9, 1), ((73, 1), 10, 2), ((71, 2), 18, 2)])
def test_decoding_reads_the_cache_once(rng, moved, rows, tiles, blocks, splits):
    """Once for up to 72 rows, heads times tokens; more are dealt to blocks. Every tile of 8 rows loads it itself."""
    share, tokens = rows
    heads = Heads(kv=1, share=share)
    run(random_step(rng, heads, past=200, tokens=tokens), splits)
    assert moved("block_read") == blocks * cache_bytes(heads, 200 + tokens)
    assert moved("streamed") == tiles * cache_bytes(heads, 200 + tokens)


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize(("rows", "tiles", "blocks"), [((1, 1), 1, 1), ((71, 1), 9, 1), ((71, 2), 18, 2)])
def test_decoding_reads_a_cache_of_bytes_once(rng, moved, rows, tiles, blocks, splits):
    """All of it 16 bytes at a time, but for the scales."""
    share, tokens = rows
    heads = Heads(kv=1, share=share)
    run(byte_step(rng, heads, past=200, tokens=tokens), splits)
    scales = 2 * 4 * (200 + tokens)
    assert moved("block_read") == blocks * (cache_bytes(heads, 200 + tokens) // 2 + scales)
    assert moved("streamed") == tiles * cache_bytes(heads, 200 + tokens) // 2


@pytest.mark.parametrize(("share", "tokens", "blocks"), [(4, 8, 1), (5, 7, 2)])
def test_wide_heads_leave_room_for_32_rows(rng, moved, share, tokens, blocks):
    heads = Heads(kv=1, share=share, size=256, rotary=256)
    run(random_step(rng, heads, past=40, tokens=tokens))
    assert moved("block_read") == blocks * cache_bytes(heads, 40 + tokens)


@pytest.mark.parametrize(("size", "window", "seen"), [(64, 0, 203), (80, 50, 52), (128, 500, 203), (256, 16, 18)])
def test_decoding_reads_what_is_visible(rng, moved, size, window, seen):
    """The union of three tokens' windows."""
    heads = Heads(kv=2, share=2, size=size, rotary=size, window=window)
    run(random_step(rng, heads, past=200, tokens=3), splits=2)
    assert moved("block_read") == moved("streamed") == cache_bytes(heads, seen)


def attention_model(heads):
    """As the benchmark describes it; an attention has no matrices."""
    return gpu_workloads.Model("", 0, 1, heads.kv * heads.share, heads.kv, heads.size, 0, False, 0, 0, heads.alibi)


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("heads", "tokens"), [
    (Heads(kv=4, size=128, rotary=128), 1), (Heads(kv=1, share=71), 1), (Heads(kv=2, share=4, size=256, rotary=256), 2),
    (Heads(kv=2, share=8, size=80, rotary=0, alibi=True), 1), (Heads(kv=1, share=9, size=96, rotary=0, alibi=True), 8),
], ids=["multi-head", "71-to-1", "wide", "alibi", "72-rows"])
def test_the_model_counts_what_an_attention_moves(rng, moved, heads, tokens, splits, kv_bits):
    """To the byte what the benchmark divides by; besides, what splits leave for each other."""
    step = (byte_step if kv_bits == 8 else random_step)(rng, heads, past=300, tokens=tokens)
    run(step, splits)
    found = sum(map(moved, ("block_read", "read", "written")))
    floats = splits * step.q.size // heads.size * (heads.size + 2)  # y, maximum and sum of each row and split
    partial = 2 * 4 * floats if splits > 1 else 0  # there and back
    expected = gpu_workloads.attention_bytes(attention_model(heads), 300, tokens, kv_bits) + partial
    assert found == expected


@pytest.mark.parametrize(("share", "tokens", "tiles"), [(1, 64, 1), (1, 130, 3), (4, 33, 3), (71, 9, 10)])
def test_a_prompt_reads_the_cache_once_per_64_rows(rng, moved, share, tokens, tiles):
    """Each tile of query rows up to its last token; what blocks share besides, and what is written, once."""
    heads, past = Heads(kv=1, share=share), 40
    step = random_step(rng, heads, past, tokens)
    prefill(step)
    last_rows = [min(64 * tile, share * tokens) - 1 for tile in range(1, tiles + 1)]
    keys = sum(past + row // share + 1 for row in last_rows)
    tables = 2 * 4 * tokens * heads.rotary // 2
    assert moved("streamed") == cache_bytes(heads, keys)
    assert moved("read") == step.q.nbytes + tables + 8
    assert moved("written") == step.q.nbytes


@pytest.mark.parametrize(("heads", "ratio"), [(Heads(kv=32, size=128), 0.516), (Heads(kv=1, share=71), 0.531)])
def test_a_cache_of_bytes_has_about_half(heads, ratio):
    """(size + 4) / (2 size)."""
    of_bits = [gpu_workloads.cache_bytes(attention_model(heads), 2048, bits) for bits in (8, 16)]
    assert round(of_bits[0] / of_bits[1], 3) == ratio


@pytest.mark.parametrize(("share", "tokens", "tiles"), [(1, 64, 1), (4, 33, 3), (71, 9, 10)])
def test_a_prompt_reads_a_cache_of_bytes_once_per_64_rows(rng, moved, share, tokens, tiles):
    heads, past = Heads(kv=1, share=share), 40
    prefill(byte_step(rng, heads, past, tokens))
    last_rows = [min(64 * tile, share * tokens) - 1 for tile in range(1, tiles + 1)]
    keys = [past + row // share + 1 for row in last_rows]
    assert moved("streamed") == cache_bytes(heads, sum(keys)) // 2
    assert moved("block_read") == 2 * 4 * sum(keys)
