"""Ops through the library: created from attributes, shapes asked and refused, results computed on fibers."""


import numpy as np
import pytest
from kernel_harness import KernelError, guarded, poisoned
from library_harness import tensors
from matmul_harness import (
    ACTIVATIONS,
    NORMS,
    Fp16Matrix,
    activations,
    assert_product,
    pack,
    random_matrix,
)
from test_norm import assert_normed
from test_sample import run as run_sample
from test_sample import settings_of

ROUNDINGS = 400  # more than any term of these small products passes through


def weight_tensors(matrix):
    stored = pack if matrix.bits == 4 else np.asarray
    return [guarded(each.view(np.int8) if each.dtype == np.uint8 else each)
            for each in (stored(matrix.q), matrix.scales, stored(matrix.zeros))]


@pytest.mark.parametrize("fp32_output", [0, 1])
@pytest.mark.parametrize("has_bias", [0, 1])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (4, 64), (8, 128), (8, 64)])
def test_integer_matmul(device, rng, bits, group_size, has_bias, fp32_output):
    matrix, x = random_matrix(rng, 19, 192, group_size, bits), activations(rng, 3, 192)
    bias = rng.standard_normal(19).astype(np.float16)
    op = device.create(f"Int{bits}MatMul", K=192, N=19, group_size=group_size, has_bias=has_bias,
                       fp32_output=fp32_output)
    y = poisoned(1, 3, 19, dtype=np.float32 if fp32_output else np.float16)
    inputs = [guarded(x[None]), *weight_tensors(matrix), *([guarded(bias)] if has_bias else [])]
    op.run(inputs, [y])
    assert_product(y[0], matrix, x, ROUNDINGS, **({"bias": bias} if has_bias else {}))
    op.close()


def run_linear(device, matrix, x, **linear):
    """An Int4MatMul with what common/linear.h has around it; names as in Matrix.matmul()."""
    N, K = matrix.shape
    attributes = {f"has_{name}": 1 for name in ("norm_bias", "bias", "act_scale", "residual") if name in linear}
    attributes |= {"norm": NORMS.index(linear.get("norm")), "gated": linear.get("gated", 0),
                   "activation": ACTIVATIONS.index(linear.get("activation"))}
    op = device.create("Int4MatMul", K=K, N=N, group_size=matrix.group_size, **attributes)
    extras = [guarded(linear[name]) for name in ("norm_weight", "norm_bias", "bias", "act_scale", "residual")
              if name in linear]
    y = poisoned(len(x), N // 2 if linear.get("gated") else N)
    op.run([guarded(x), *weight_tensors(matrix), *extras], [y])
    return y


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_matmul_after_a_norm(device, rng, kind):
    matrix, x = random_matrix(rng, 20, 192, 64), activations(rng, 3, 192)
    linear = {"norm": kind, "norm_weight": rng.standard_normal(192).astype(np.float32)}
    if kind == "layer":
        linear["norm_bias"] = rng.standard_normal(192).astype(np.float32)
    assert_product(run_linear(device, matrix, x, **linear), matrix, x, ROUNDINGS, **linear)


@pytest.mark.parametrize(("K", "group_size", "rows", "norm"), [
    (4096, 128, 6, "rms"), (4544, 64, 5, "rms"), (2560, 64, 8, None)], ids=str)
def test_static_shared_memory_counts_with_the_dynamic(device, rng, K, group_size, rows, norm):
    """Rows of x that leave none of the 48 KiB which a block has without being asked for."""
    matrix, x = random_matrix(rng, 16, K, group_size), activations(rng, rows, K)
    linear = {"norm": norm, "norm_weight": rng.standard_normal(K).astype(np.float32)} if norm else {}
    assert_product(run_linear(device, matrix, x, **linear), matrix, x, ROUNDINGS, **linear)
    dynamic = int(device.calls("cuLaunchKernel")[0].split()[-2])
    assert dynamic <= 48 * 1024
    assert device.calls("cuFuncSetAttribute") == [f"{device.calls('cuLaunchKernel')[0].split()[0]} 8 {dynamic}"]


@pytest.mark.parametrize("rows", [2, 20])
def test_matmul_with_gate_scale_and_residual(device, rng, rows):
    matrix, x = random_matrix(rng, 2 * 21, 192, 64), activations(rng, rows, 192)
    linear = {"activation": "silu", "gated": 1, "bias": rng.standard_normal(42).astype(np.float16),
              "act_scale": np.exp(rng.standard_normal(21)).astype(np.float32),
              "residual": rng.standard_normal((rows, 21)).astype(np.float16)}
    assert_product(run_linear(device, matrix, x, **linear), matrix, x, ROUNDINGS, **linear)


@pytest.mark.parametrize("rows", [9, 40, 130])
def test_matmul_of_many_rows_is_split_over_the_device(device, rng, rows):
    matrix, x = random_matrix(rng, 70, 1088, 128), activations(rng, rows, 1088)
    for _ in range(2):  # counters are zero again after the first
        assert_product(run_linear(device, matrix, x), matrix, x, 2 * ROUNDINGS)
    kernel, blocks = device.calls("cuLaunchKernel")[0].split()[:2]
    assert kernel == f"int4_matmul_{next(tile for tile in (16, 32, 64, 128) if rows <= tile or tile == 128)}"
    assert 1 < int(blocks) <= 16


@pytest.mark.parametrize("has_bias", [0, 1])
def test_fp16_matmul(device, rng, has_bias):
    weight, x = rng.standard_normal((19, 192)).astype(np.float16), activations(rng, 2, 192)
    bias = rng.standard_normal(19).astype(np.float16)
    op, y = device.create("Fp16MatMul", K=192, N=19, has_bias=has_bias), poisoned(2, 19)
    op.run([guarded(x), guarded(weight), *([guarded(bias)] if has_bias else [])], [y])
    assert_product(y, Fp16Matrix(weight), x, ROUNDINGS, **({"bias": bias} if has_bias else {}))


@pytest.mark.parametrize("has_delta", [0, 1])
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_norms(device, rng, kind, has_delta):
    x, delta = (rng.standard_normal((2, 72)).astype(np.float16) for _ in range(2))
    weight = rng.standard_normal(72).astype(np.float32)
    op = device.create({"rms_norm": "RmsNorm", "layer_norm": "LayerNorm"}[kind], epsilon=1e-5, has_delta=has_delta)
    outputs = [poisoned(2, 72) for _ in range(1 + has_delta)]
    op.run([guarded(x), *([guarded(delta)] if has_delta else []), guarded(weight)], outputs)
    hidden = outputs[1] if has_delta else x
    if has_delta:
        np.testing.assert_array_equal(hidden, x + delta)  # numpy rounds the sum to fp16, as the kernel does
    assert_normed(kind, outputs[0], hidden, weight)


@pytest.mark.parametrize("size", [5, 9000])
def test_argmax(device, rng, size):
    logits, tokens = rng.standard_normal((2, size)).astype(np.float32), np.full(2, -1)
    op = device.create("GreedyToken")
    for _ in range(2):
        op.run([guarded(logits)], [tokens])
        np.testing.assert_array_equal(tokens, logits.argmax(1))


def embedding(device, rng, bits, **changes):
    """(op, the table's tensors, its rows as float16), for a vocabulary of 37 and rows of 192."""
    if bits == 16:
        table = activations(rng, 37, 192)
        return device.create("TokenEmbedding", vocabulary=37, size=192, **changes), [guarded(table)], table
    matrix = random_matrix(rng, 37, 192, 64, bits)
    op = device.create("TokenEmbedding", vocabulary=37, size=192, bits=bits, group_size=64, **changes)
    return op, weight_tensors(matrix), matrix.weights.astype(np.float16)  # products of 20 bits: rounded once


@pytest.mark.parametrize("shape", [(1,), (1, 5), (2, 2, 1)])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_embedding_has_one_more_dimension_than_its_tokens(device, rng, bits, shape):
    op, table, rows = embedding(device, rng, bits)
    tokens, y = rng.integers(0, 37, shape), poisoned(*shape, 192)
    op.run([guarded(tokens), *table], [y])
    np.testing.assert_array_equal(y, rows[tokens])
    kernel = "embedding_fp16" if bits == 16 else f"embedding_int{bits}"
    assert [line.split()[:2] for line in device.calls("cuLaunchKernel")] == [[kernel, str(tokens.size)]]


@pytest.mark.parametrize(("bits", "changes", "text"), [
    (16, {0: np.zeros((), np.int64)}, r"tokens has shape \[\], not \[.., rows\]"),
    (16, {0: np.zeros((1, 0), np.int64)}, "rows = 0"),
    (16, {1: np.zeros((36, 192), np.float16)}, r"weight has shape \[36, 192\], not \[37, 192\]"),
    (8, {1: np.zeros((37, 96), np.int8)}, r"qweight has shape \[37, 96\], not \[37, 192\]"),
    (4, {3: np.zeros((37, 3), np.int8)}, r"zero_points has shape \[37, 3\], not \[37, 2\]"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_tables_of_another_shape_are_refused(device, rng, bits, changes, text):
    op, table, _ = embedding(device, rng, bits)
    inputs = [changes.get(i, each) for i, each in enumerate([np.zeros((1, 2), np.int64), *table])]
    with pytest.raises(KernelError, match=f"TokenEmbedding: {text}"):
        op.run(inputs, [np.zeros((*inputs[0].shape, 192), np.float16)])
    assert not device.calls("cuLaunchKernel")


def test_sample(device, rng):
    """What the harness draws; test_sample.py says that this is right."""
    logits, settings = rng.standard_normal((3, 501)).astype(np.float32), {"top_k": 40, "temperature": 0.8}
    op, tokens = device.create("SampleToken"), np.full((1, 3), -1)
    given = logits[None], settings_of(settings), np.array([2**35]), np.array([17])
    op.run([guarded(each) for each in given], [tokens])
    np.testing.assert_array_equal(tokens[0], run_sample(logits, settings, 2**35, 17)[0])
    assert device.calls("cuLaunchKernel") == ["sample 3 1 1 512 1 1 0 0"]
    assert device.calls("cuMemAlloc") == ["12"]  # counters


@pytest.mark.parametrize(("index", "shape", "text"), [
    (0, (5,), r"logits has shape \[5\], not \[.., rows, size\]"),
    (1, (3,), r"settings has shape \[3\], not \[4\]"), (2, (2,), r"seed has shape \[2\], not \[1\]"),
    (3, (1, 1), r"step has shape \[1, 1\], not \[1\]"), (0, (1, 2**20 + 1), "size = 1048577")],
    ids=["logits", "settings", "seed", "step", "size"])
def test_sample_refuses_shapes(device, index, shape, text):
    shapes = [(1, 5), (4,), (1,), (1,)]
    shapes[index] = shape
    inputs = [np.zeros(shape, kind) for shape, kind in zip(shapes, "ffqq", strict=True)]
    with pytest.raises(KernelError, match=f"SampleToken: {text}"):
        device.create("SampleToken").run(inputs, [np.zeros(1, np.int64)])


def test_memory_for_counters_is_kept_and_freed(device, rng):
    before = device.driver.fake_allocations()
    op = device.create("GreedyToken")
    for rows in (2, 1, 2):
        op.run([np.zeros((rows, 3), np.float32)], [np.zeros(rows, np.int64)])
    assert device.calls("cuMemAlloc") == ["8"]
    op.close()
    assert device.driver.fake_allocations() == before


def test_counters_of_captured_graphs_stay(device):
    before = device.driver.fake_allocations()
    op = device.create("GreedyToken")
    for rows in (1, 3, 2):
        op.run([np.zeros((rows, 3), np.float32)], [np.zeros(rows, np.int64)])
    assert device.calls("cuMemAlloc") == ["4", "12"]
    assert device.driver.fake_allocations() == before + 2  # a graph of one row may be launched again
    op.close()
    assert device.driver.fake_allocations() == before


def test_prepare_does_what_a_capture_forbids(device):
    op, logits = device.create("GreedyToken"), np.zeros((2, 3), np.float32)
    assert device.library.edge_awq_prepare(op.handle, tensors([logits]), 1) == 0
    device.driver.fake_forget()
    op.run([logits], [np.zeros(2, np.int64)])
    assert [line.split()[0] for line in device.driver.fake_calls().decode().splitlines()] == ["cuLaunchKernel"]


@pytest.mark.parametrize(("function", "text"), [
    ("cuMemAlloc_v2", r"GreedyToken: cuMemAlloc: .* \(8 bytes\)"), ("cuMemsetD8_v2", "GreedyToken: cuMemsetD8: "),
    ("cuStreamSynchronize", "GreedyToken: cuMemsetD8: ")])
def test_memory_errors_are_reported(device, function, text):
    before = device.driver.fake_allocations()
    device.fail(function, 2)
    op = device.create("GreedyToken")
    with pytest.raises(KernelError, match=text):
        op.run([np.zeros((2, 3), np.float32)], [np.zeros(2, np.int64)])
    assert device.driver.fake_allocations() == before


GOOD = {"K": 128, "N": 8, "group_size": 128}
ATTENTION = {"num_heads": 4, "kv_num_heads": 2, "head_size": 64, "scale": 0.125, "window": 0, "softcap": 0.0}


@pytest.mark.parametrize(("op", "attributes", "text"), [
    ("Int4MatMul", GOOD | {"K": 96}, "Int4MatMul: K = 96"),
    ("Int4MatMul", GOOD | {"N": 0}, "Int4MatMul: N = 0"),
    ("Int4MatMul", GOOD | {"group_size": 32}, "Int4MatMul: group_size = 32"),
    ("Int8MatMul", {"K": 128, "N": 8}, "Int8MatMul: attribute group_size is missing"),
    ("Fp16MatMul", GOOD, "Fp16MatMul: unknown attribute group_size"),
    ("Int4MatMul", GOOD | {"gated": 1, "N": 7}, "Int4MatMul: N = 7 is odd"),
    ("Int4MatMul", GOOD | {"activation": 9}, "Int4MatMul: activation = 9"),
    ("Int4MatMul", GOOD | {"norm": 1, "has_norm_bias": 1}, "Int4MatMul: norm = 1 has no bias"),
    ("Int4MatMul", GOOD | {"has_norm_bias": 1}, "Int4MatMul: norm = 0, but there is a weight or bias"),
    ("Int4MatMul", GOOD | {"K": 128.0}, "K must be a whole number"),
    ("Int4MatMul", GOOD | {"contract_version": 99}, "the engine was built for contract version 99, this library has 2"),
    ("CachedAttention", ATTENTION | {"head_size": 72}, "head_size = 72"),
    ("CachedAttention", ATTENTION | {"num_heads": 3}, "num_heads = 3"),
    ("CachedAttention", ATTENTION | {"window": -1}, "window = -1"),
    ("CachedAttention", ATTENTION | {"softcap": -1.0}, "softcap = -1"),
    ("CachedAttention", ATTENTION | {"kv_bits": 4}, "kv_bits = 4, not 16 or 8"),
    ("RmsNorm", {"epsilon": 0.0}, "epsilon = 0.0"),
    ("TokenEmbedding", {"vocabulary": 9, "size": 96}, "TokenEmbedding: size = 96 is not a multiple of 64"),
    ("TokenEmbedding", {"vocabulary": 9, "size": 64, "bits": 5}, "TokenEmbedding: bits = 5"),
    ("TokenEmbedding", {"vocabulary": 9, "size": 64, "bits": 4, "group_size": 32}, "TokenEmbedding: group_size = 32"),
    ("Softmax", {}, "Softmax: no such op"),
], ids=lambda value: value if isinstance(value, str) and " " in value else "")
def test_attributes_are_refused_by_name_and_value(device, op, attributes, text):
    with pytest.raises(KernelError, match=text):
        device.create(op, **attributes)


def matmul_inputs(**changes):
    arrays = {"x": np.zeros((1, 128), np.float16), "qweight": np.zeros((8, 64), np.int8),
              "scales": np.zeros((8, 1), np.float16), "zero_points": np.zeros((8, 1), np.int8)}
    return list((arrays | changes).values())


@pytest.mark.parametrize(("changes", "text"), [
    ({"x": np.zeros((1, 64), np.float16)}, r"x has shape \[1, 64\], not \[.., 128\]"),
    ({"x": np.zeros((0, 128), np.float16)}, "x has no rows"),
    ({"qweight": np.zeros((8, 128), np.int8)}, r"qweight has shape \[8, 128\], not \[8, 64\]"),
    ({"scales": np.zeros((4, 1), np.float16)}, r"scales has shape \[4, 1\], not \[8, 1\]"),
    ({"zero_points": np.zeros(8, np.int8)}, r"zero_points has shape \[8\], not \[8, 1\]"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_shapes_are_refused(device, changes, text):
    with pytest.raises(KernelError, match=f"Int4MatMul: {text}"):
        inputs = matmul_inputs(**changes)
        device.create("Int4MatMul", **GOOD).run(inputs, [np.zeros((len(inputs[0]), 8), np.float16)])
    assert not device.calls("cuLaunchKernel")


def test_numbers_of_tensors_and_output_shapes_are_checked(device):
    op = device.create("Int4MatMul", **GOOD)
    with pytest.raises(KernelError, match="3 inputs, not 4"):
        op.run(matmul_inputs()[:3], [np.zeros((1, 8), np.float16)], workspace=np.zeros(1))
    with pytest.raises(KernelError, match="0 outputs, not 1"):
        op.run(matmul_inputs(), [])
    with pytest.raises(KernelError, match=r"y has shape \[1, 9\], not \[1, 8\]"):
        op.run(matmul_inputs(), [np.zeros((1, 9), np.float16)])


def test_workspace_is_enough_in_every_power_mode(device):
    """An engine is built in one; in another there are fewer multiprocessors, or more, and other splits."""
    matmul = device.create("Int4MatMul", K=4096, N=4096, group_size=128)
    attention = device.create("CachedAttention", **ATTENTION | {"has_slopes": 0})
    x, cache, table = np.empty((300, 4096), np.float16), np.empty((1, 2, 2048, 64), np.float16), np.empty((2048, 32))
    weights = [np.empty((4096, columns), np.int8) for columns in (2048, 32, 16)]
    q, kv = np.empty((1, 1, 256), np.float16), np.empty((1, 1, 128), np.float16)
    wanted = {}
    for integrated in (0, 1):
        for count in (16, 12, 8, 6, 4):
            device.reset(multiprocessors=count, integrated=integrated)
            wanted[integrated, count] = (
                matmul.workspace_bytes(x, *weights),
                attention.workspace_bytes(q, kv, kv, cache, cache, np.zeros(1, np.int64), table, table))
    for which in (0, 1):
        alone = [wanted[0, count][which] for count in (16, 12, 8, 6, 4)]
        assert len(set(alone)) > 1
        assert min(wanted[1, count][which] for count in (16, 12, 8, 6, 4)) >= max(alone)
