"""Ops through the library: created from attributes, shapes asked and refused, results computed on fibers."""

import dataclasses

import numpy as np
import pytest
from attention_harness import Heads, Result, check_result, quantized, random_step
from attention_harness import reference as attention_reference
from kernel_harness import KernelError, guarded, poisoned
from library_harness import Device, tensors
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

ROUNDINGS = 400  # more than any term of these small products passes through


@pytest.fixture(scope="module")
def shared_device():
    return Device.make()


@pytest.fixture
def device(shared_device):
    shared_device.reset()
    return shared_device


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


@pytest.mark.parametrize(("rows", "kernel"), [(1, "int4_gemv_g64_chained"), (2, "int4_gemv_g64_rows4")])
def test_chains_of_halves_are_an_attribute(device, rng, rows, kernel):
    matrix, x = random_matrix(rng, 20, 192, 64), activations(rng, rows, 192)
    op, y = device.create("Int4MatMul", K=192, N=20, group_size=64, fp16_chains=1), poisoned(rows, 20)
    op.run([guarded(x), *weight_tensors(matrix)], [y])
    np.testing.assert_array_equal(y, matrix.matmul(x, fp16_chains=1))
    assert device.calls("cuLaunchKernel")[0].split()[0] == kernel
    with pytest.raises(KernelError, match="Int4MatMul: fp16_chains = 3, not 0 or 1"):
        device.create("Int4MatMul", K=192, N=20, group_size=64, fp16_chains=3)
    with pytest.raises(KernelError, match="Int8MatMul: unknown attribute fp16_chains"):
        device.create("Int8MatMul", K=192, N=20, group_size=64, fp16_chains=1)


@pytest.mark.parametrize("has_bias", [0, 1])
def test_fp16_matmul(device, rng, has_bias):
    weight, x = rng.standard_normal((19, 192)).astype(np.float16), activations(rng, 2, 192)
    bias = rng.standard_normal(19).astype(np.float16)
    op, y = device.create("Fp16MatMul", K=192, N=19, has_bias=has_bias), poisoned(2, 19)
    op.run([guarded(x), guarded(weight), *([guarded(bias)] if has_bias else [])], [y])
    assert_product(y, Fp16Matrix(weight), x, ROUNDINGS, **({"bias": bias} if has_bias else {}))


def attention_op(device, heads, packed=0, **changes):
    """With the attributes of these heads; has_slopes is left out unless it is among the changes."""
    given = {"num_heads": heads.kv * heads.share, "kv_num_heads": heads.kv, "head_size": heads.size,
             "scale": heads.scale, "window": heads.window, "softcap": heads.softcap, "packed_qkv": packed}
    return device.create("CachedAttention", **given | changes)


def attention_tensors(step, packed=0, has_slopes=1):
    """(inputs, caches), the caches among the inputs."""
    new = [np.concatenate([step.q, step.k, step.v], axis=1)] if packed else [step.q, step.k, step.v]
    caches = cache_tensors(step)
    tables = [np.array([step.past]), step.cosines, step.sines, *[step.heads.op_slopes] * has_slopes]
    return [*(guarded(each[None]) for each in new), *caches, *map(guarded, tables)], caches


def cache_tensors(step):
    """Keys and values, and their scales if there are any; bytes travel as INT8."""
    each = [step.key_cache, step.value_cache, step.key_scales, step.value_scales]
    return [guarded(array.view(np.int8)[None] if array.dtype == np.uint8 else array[None])
            for array in each if array is not None]


def result_of(y, caches):
    """What check_result() takes."""
    first = [cache[0].view(np.uint8) if cache.dtype == np.int8 else cache[0] for cache in caches]
    return Result(y[0], *first)


# (what differs from plain heads, has_slopes, which kernel runs)
KINDS = {"plain": ({}, 0, ""), "zeros": ({}, 1, "_adjusted"), "alibi": ({"rotary": 0, "alibi": True}, 1, "_adjusted"),
         "softcap": ({"softcap": 2.0}, 0, "_adjusted")}


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "packed"), [(1, 0), (1, 1), (3, 0), (3, 1)])
def test_attention_over_several_splits(device, rng, tokens, packed, kind, kv_bits):
    changes, has_slopes, suffix = KINDS[kind]
    heads = Heads(**{"kv": 2, "share": 3, "size": 64, "rotary": 32, "window": 200} | changes)
    step = random_step(rng, heads, past=260, tokens=tokens, capacity=320)
    step = quantized(step) if kv_bits == 8 else step
    defaults = {"has_slopes": 1, "kv_bits": 16}
    given = {"has_slopes": has_slopes, "kv_bits": kv_bits}
    op = attention_op(device, heads, packed, **{name: given[name] for name in given if given[name] != defaults[name]})
    inputs, caches = attention_tensors(step, packed, has_slopes)
    for _ in range(2):  # counters are zero again after the first; the second appends the same rows in the same places
        y = poisoned(1, *step.q.shape)
        op.run(inputs, [y, *caches])
        exact, bound = attention_reference(step, result_of(y, caches))
        assert (np.abs(y[0] - exact) <= bound).all()
    # 320 rows: 4 warps with 16 each; 4 warps for 2 tiles, where merging counts, and more where rows are bytes.
    splits = {1: 5, 3: 8 if kv_bits == 16 else 5}[tokens]
    suffix += "" if kv_bits == 16 else "_kv8"
    assert [line.split()[:2] for line in device.calls("cuLaunchKernel")] == 2 * [
        [f"decode_attention_64{suffix}", str(2 * splits)]]


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("kind", ["plain", "alibi", "softcap"])
@pytest.mark.parametrize(("tokens", "packed"), [(9, 0), (9, 1), (70, 1)])
def test_attention_of_a_prompt_and_of_the_token_after_it(device, rng, tokens, packed, kind, kv_bits):
    changes, has_slopes, suffix = KINDS[kind]
    stored, of_bytes = (quantized, "_kv8") if kv_bits == 8 else (lambda step: step, "")
    heads = Heads(**{"kv": 2, "share": 3, "size": 64, "rotary": 32, "window": 60} | changes)
    op = attention_op(device, heads, packed, has_slopes=has_slopes, kv_bits=kv_bits)
    prompt = stored(random_step(rng, heads, past=21, tokens=tokens, capacity=100))
    inputs, caches = attention_tensors(prompt, packed, has_slopes)
    run_attention_step(op, prompt, inputs, caches)
    rows = -(-3 * tokens // 64)
    assert [line.split()[:2] for line in device.calls("cuLaunchKernel")] == [
        ["append_kv" + "8" * (kv_bits == 8), str(tokens)], [f"prefill_attention_64{of_bytes}", str(2 * rows)]]
    token = stored(random_step(rng, heads, past=21 + tokens, capacity=100))
    after = result_of([None], caches)
    token = dataclasses.replace(token, **{name: getattr(after, name) for name in (
        "key_cache", "value_cache", "key_scales", "value_scales")})
    run_attention_step(op, token, *attention_tensors(token, packed, has_slopes))
    assert device.calls("cuLaunchKernel")[2].split()[0] == f"decode_attention_64{suffix}{of_bytes}"


def run_attention_step(op, step, inputs, caches):
    """Run it, and compare with float64."""
    y = poisoned(1, *step.q.shape)
    op.run(inputs, [y, *caches])
    check_result(step, result_of(y, caches))


def test_memory_for_prompts_is_memory_for_decoding(device):
    """The most for any number of tokens up to that: engines ask once, for their largest shapes."""
    op = attention_op(device, Heads(kv=2, share=5, size=256), packed=1)
    cache, table = np.empty((1, 2, 512, 256), np.float16), np.empty((512, 32), np.float32)
    others = [cache, cache, np.zeros(1, np.int64), table, table, np.empty(10, np.float32)]
    wanted = [op.workspace_bytes(np.empty((1, tokens, 14 * 256), np.float16), *others)
              for tokens in (1, 2, 4, 8, 9, 500)]
    assert 0 < wanted[0] < wanted[3] and wanted == sorted(wanted) and len(set(wanted[3:])) == 1


@pytest.mark.parametrize(("function", "size", "kernel"), [
    ("cuLaunchKernel", 64, "append_kv, 9 blocks of 256"),
    ("cuFuncSetAttribute", 256, "prefill_attention_256, 2 blocks of 128")], ids=["first", "second"])
def test_either_launch_of_a_prompt_may_fail(device, rng, function, size, kernel):
    step = random_step(rng, Heads(size=size), past=3, tokens=9)
    op = attention_op(device, step.heads)
    inputs, caches = attention_tensors(step)
    device.fail(function, 1)
    with pytest.raises(KernelError, match=f"CachedAttention: {function}: CUDA_ERROR_INVALID_VALUE.*{kernel}"):
        op.run(inputs, [poisoned(1, *step.q.shape), *caches])
    assert [line.split()[0] for line in device.calls("cuLaunchKernel")] == ["append_kv"]


def test_a_prompt_that_is_refused_leaves_the_cache_alone(device, rng):
    step = random_step(rng, Heads(), past=3, tokens=9)
    op = attention_op(device, step.heads)
    inputs, caches = attention_tensors(step)
    odd = poisoned(9 * 128 + 1)[:-1].reshape(1, 9, 128)
    with pytest.raises(KernelError, match=r"CachedAttention: y at 0x\w+ is not aligned to 16 bytes"):
        op.run(inputs, [odd, *caches])
    assert not device.calls("cuLaunchKernel")


@pytest.mark.parametrize(("tokens", "capacity", "rotary", "text"), [
    (13, 12, 64, "capacity = 12, less than tokens = 13"), (4, 3, 64, "capacity = 3, less than tokens = 4"),
    (9, 12, 66, "rotary_size = 66, not an even number up to head_size = 64")])
def test_shapes_of_attention_are_refused(device, tokens, capacity, rotary, text):
    op = attention_op(device, Heads())
    new, cache = np.zeros((1, tokens, 128), np.float16), np.zeros((1, 2, capacity, 64), np.float16)
    table = np.zeros((capacity, rotary // 2), np.float32)
    with pytest.raises(KernelError, match=f"CachedAttention: {text}"):
        op.workspace_bytes(new, new, new, cache, cache, np.zeros(1, np.int64), table, table, np.zeros(2, np.float32))


@pytest.mark.parametrize(("has_slopes", "text"), [
    (0, "CachedAttention: 9 inputs, not 8"), (1, r"CachedAttention: slopes has shape \[3\], not \[2\]")])
def test_slopes_are_refused_where_they_do_not_belong(device, rng, has_slopes, text):
    heads = Heads()
    inputs, caches = attention_tensors(random_step(rng, heads, past=3))
    op = attention_op(device, heads, has_slopes=has_slopes)
    with pytest.raises(KernelError, match=text):
        op.run([*inputs[:-1], np.zeros(3, np.float32)], [poisoned(1, 1, 128), *caches], workspace=np.zeros(1))
    assert not device.calls("cuLaunchKernel")


@pytest.mark.parametrize(("kv_bits", "index", "name"), [
    (16, 0, "key"), (16, 1, "value"), (8, 0, "key"), (8, 2, "key_scale"), (8, 3, "value_scale")])
def test_attention_refuses_a_cache_in_two_places(device, rng, kv_bits, index, name):
    heads = Heads()
    step = random_step(rng, heads, past=3)
    op = attention_op(device, heads, kv_bits=kv_bits)
    inputs, caches = attention_tensors(quantized(step) if kv_bits == 8 else step)
    caches[index] = caches[index].copy()
    with pytest.raises(KernelError, match=f"present_{name} is not the memory of past_{name}: bind both to one address"):
        op.run(inputs, [poisoned(1, *step.q.shape), *caches])
    assert not device.calls("cuLaunchKernel")


@pytest.mark.parametrize(("index", "shape", "text"), [
    (3, (1, 2, 9, 32), r"past_key has shape \[1, 2, 9, 32\], not \[1, 2, capacity, 64\]"),
    (5, (1, 2, 8), r"past_key_scale has shape \[1, 2, 8\], not \[1, 2, 9\]"),
    (6, (1, 2, 9, 1), r"past_value_scale has shape \[1, 2, 9, 1\], not \[1, 2, 9\]"),
    (8, (8, 32), r"cos has shape \[8, 32\], not \[9 or more, rotary_size / 2\]")], ids=["key", "scale", "rank", "cos"])
def test_shapes_of_a_cache_of_bytes_are_refused(device, rng, index, shape, text):
    step = quantized(random_step(rng, Heads(), past=3, capacity=9))
    inputs, _ = attention_tensors(step)
    inputs[index] = np.zeros(shape, inputs[index].dtype)
    with pytest.raises(KernelError, match=f"CachedAttention: {text}"):
        attention_op(device, step.heads, kv_bits=8).workspace_bytes(*inputs)


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
    values = np.array([0.8, 40, 1, 0], np.float32)
    op, tokens = device.create("SampleToken"), np.full((1, 3), -1)
    op.run([guarded(each) for each in (logits[None], values, np.array([2**35]), np.array([17]))], [tokens])
    np.testing.assert_array_equal(tokens[0], run_sample(logits, settings, 2**35, 17)[0])
    assert device.calls("cuLaunchKernel") == ["sample 3 1 1 512 1 1 0 0"] and not device.calls("cuMemAlloc")


@pytest.mark.parametrize(("index", "shape", "text"), [
    (0, (5,), r"logits has shape \[5\], not \[.., rows, size\]"), (1, (3,), r"settings has shape \[3\], not \[4\]"),
    (2, (2,), r"seed has shape \[2\], not \[1\]"), (3, (1, 1), r"step has shape \[1, 1\], not \[1\]"),
    (0, (1, 2**20 + 1), "size = 1048577")], ids=["logits", "settings", "seed", "step", "size"])
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
