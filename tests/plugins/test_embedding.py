"""The embedding's rows on the CPU, from tables of halves, bytes and nibbles: exactly what numpy gives."""

import ctypes

import numpy as np
import pytest
from kernel_harness import KernelError, call, guarded, pointer, poisoned
from matmul_harness import activations, pack, random_matrix

VOCABULARY = 37


class EmbeddingArguments(ctypes.Structure):
    """As in embedding/kernel.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ids", "table", "scales", "zero_points", "y")),
        *((name, ctypes.c_int) for name in ("rows", "size", "vocabulary", "bits", "group_size", "id_bytes")),
    )


def gather(ids, tensors, bits, **settings):
    """y [rows, size] float16 of the table's (table, scales, zero_points); without ids, all of it."""
    table = tensors[0]
    size = table.shape[1] * (2 if bits == 4 else 1)
    rows = len(table) if ids is None else len(ids)
    y = poisoned(rows, size)
    guarded_tensors = [None if each is None else guarded(each) for each in (ids, *tensors)]
    values = {"rows": rows, "size": size, "vocabulary": len(table), "bits": bits, "group_size": 64,
              "id_bytes": 8 if ids is None else ids.itemsize} | settings
    call("edge_awq_embedding", EmbeddingArguments(*map(pointer, (*guarded_tensors, y)), *values.values()))
    return y


@pytest.mark.parametrize("id_type", [np.int64, np.int32])
@pytest.mark.parametrize("size", [64, 2112, 4544])
def test_halves(rng, size, id_type):
    table = activations(rng, VOCABULARY, size)
    ids = np.array([0, 36, 7, 7], id_type)
    np.testing.assert_array_equal(gather(ids, (table, None, None), 16), table[ids])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize("size", [64, 192, 4544])
def test_integers(rng, size, group_size, bits):
    matrix = random_matrix(rng, VOCABULARY, size, group_size, bits)
    stored = pack if bits == 4 else np.asarray
    tensors = stored(matrix.q), matrix.scales, stored(matrix.zeros)
    ids = np.array([36, 0, 19])
    y = gather(ids, tensors, bits, group_size=group_size)
    np.testing.assert_array_equal(y, matrix.weights[ids].astype(np.float16))  # products of 20 bits: rounded once


@pytest.mark.parametrize("bits", [4, 8])
def test_a_matrix_becomes_halves(rng, bits):
    """What a prompt's matmul may multiply by where unpacking once is cheaper than in every tile."""
    matrix = random_matrix(rng, 19, 192, 128, bits)
    stored = pack if bits == 4 else np.asarray
    y = gather(None, (stored(matrix.q), matrix.scales, stored(matrix.zeros)), bits, group_size=128)
    np.testing.assert_array_equal(y, matrix.weights.astype(np.float16))


@pytest.mark.parametrize("wrong", [-1, VOCABULARY, 2**31, -(2**40)])
def test_an_id_outside_the_vocabulary_gives_nans(rng, wrong):
    table = activations(rng, VOCABULARY, 64)
    y = gather(np.array([3, wrong, 4]), (table, None, None), 16)
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[[0, 2]], table[[3, 4]])


@pytest.mark.parametrize(("settings", "reason"), [
    ({"size": 96}, "size = 96"),
    ({"rows": 0}, "rows = 0"),
    ({"vocabulary": 0}, "vocabulary = 0"),
    ({"bits": 5}, "bits = 5"),
    ({"bits": 4, "group_size": 32}, "group_size = 32"),
    ({"bits": 8}, "scales or zero_points is null"),
    ({"id_bytes": 2}, "id_bytes = 2"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refusals_name_the_value(rng, settings, reason):
    with pytest.raises(KernelError, match=reason):
        gather(np.array([1]), (activations(rng, VOCABULARY, 64), None, None), **{"bits": 16} | settings)
