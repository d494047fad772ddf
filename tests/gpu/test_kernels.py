"""The kernels on a GPU against float64, on inputs that no run has seen before; outputs start as NaN.

A tensor core cuts its sums to fp32 where a CPU rounds, and aligns the terms of a product before it adds them: an error
of up to 2^-22 per step (twice a cut's 2^-23). Bounds are those of tests/plugins with four times the roundings.
"""

import dataclasses

import numpy as np
import pytest
from attention_harness import Heads, Result, check_caches, quantized, random_step
from attention_harness import reference as attention_reference
from matmul_harness import GEMV_ROWS, Fp16Matrix, IntMatrix, activations, assert_product, pack, random_matrix
from test_norm import EPSILON, assert_normed
from test_sample import SETTINGS, filtered, settings_of, weights_of

from edge_awq.engine.trt.reference_sample import uniform

pytestmark = pytest.mark.gpu

CUT = 4
# The int4 GEMVs' weights are halves below 2^-14, q * 2^-24. A tensor core may align what it adds to 2^-14 times the
# largest of x, 1024 steps of a weight, and keep 24 bits of it: each of 16 products and the sum before may lose so much.
SMALL_HALVES_CUT = 17 * 1024 * 2.0**-24
SHAPES = [(1, 64), (17, 192), (33, 1088), (48, 4544)]  # N, K: ragged in both
LARGE = [(4096, 4096), (4672, 4544), (4096, 11008), (50257, 768), (64, 28672)]


def roundings(K):
    """Of any one term, at most: one per step of 16 along K in its warp, over warps, groups and the end."""
    return CUT * (K // 16 + 200)


def cut(matrix, rows):
    """See assert_product()."""
    return SMALL_HALVES_CUT if matrix.bits == 4 and rows <= GEMV_ROWS else 0.0


def stored(matrix):
    packed = pack if matrix.bits == 4 else np.asarray
    return [packed(matrix.q).view(np.int8), matrix.scales, packed(matrix.zeros).view(np.int8)]


def run_matmul(device, matrix, x, bias=None, dtype=np.float16):
    N, K = matrix.q.shape
    op = device.op(f"Int{matrix.bits}MatMul", K=K, N=N, group_size=matrix.group_size, has_bias=int(bias is not None),
                   fp32_output=int(dtype == np.float32))
    inputs = [device.put(each) for each in (x, *stored(matrix), *([] if bias is None else [bias]))]
    y = device.poisoned((len(x), N), dtype)
    op.run(inputs, [y])
    return device.get(y)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 9, 20, 33, 130])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (4, 64), (8, 128), (8, 64)])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_integer_matmul(device, rng, shape, bits, group_size, rows):
    N, K = shape
    matrix, x = random_matrix(rng, N, K, group_size, bits), activations(rng, rows, K)
    bias = rng.standard_normal(N).astype(np.float16)
    assert_product(run_matmul(device, matrix, x, bias), matrix, x, roundings(K), cut(matrix, rows), bias=bias)


@pytest.mark.parametrize("group_size", [128, 64])
@pytest.mark.parametrize(("N", "K"), LARGE)
def test_integer_matmul_large(device, rng, N, K, group_size):
    matrix, x = random_matrix(rng, N, K, group_size), activations(rng, 2, K, outliers=30)
    y = run_matmul(device, matrix, x, dtype=np.float32)
    assert_product(y, matrix, x, roundings(K), cut(matrix, 2))
    exact = x.astype(np.float64) @ matrix.weights.T
    assert (np.abs(y - exact).max(1) <= 1e-3 * np.linalg.norm(exact, axis=1)).all()


@pytest.mark.parametrize("group_size", [128, 64])
def test_every_nibble_with_every_zero_point(device, group_size):
    """One-hot activations: the results are exact, if tensor cores multiply halves below 2^-14 as they are."""
    value, zero = np.divmod(np.arange(256), 16)
    q = ((value[:, None] + np.arange(128)) % 16).astype(np.uint8)
    zeros = np.repeat(zero[:, None], 128 // group_size, axis=1).astype(np.uint8)
    matrix = IntMatrix(q, zeros, np.full(zeros.shape, 0.25, np.float16), group_size)
    for places in np.arange(128).reshape(-1, 8):
        x = np.zeros((8, 128), np.float16)
        x[np.arange(8), places] = 2
        np.testing.assert_array_equal(run_matmul(device, matrix, x), 2 * matrix.weights[:, places].T)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [9, 130])
def test_weights_made_halves_first(device, rng, bits, rows):
    matrix, x = random_matrix(rng, 33, 1088, 64, bits), activations(rng, rows, 1088)
    op, y = device.op(f"Int{bits}MatMul", K=1088, N=33, group_size=64, dequantize_from=9), device.poisoned((rows, 33))
    op.run([device.put(each) for each in (x, *stored(matrix))], [y])
    assert_product(device.get(y), Fp16Matrix(matrix.weights.astype(np.float16)), x, roundings(1088))


@pytest.mark.parametrize("rows", [1, 8, 9, 20, 64, 130])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_fp16_matmul(device, rng, N, K, rows):
    weight, x = rng.standard_normal((N, K)).astype(np.float16), activations(rng, rows, K)
    y = device.poisoned((rows, N))
    device.op("Fp16MatMul", K=K, N=N).run([device.put(x), device.put(weight)], [y])
    assert_product(device.get(y), Fp16Matrix(weight), x, roundings(K))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_everything_around_a_matmul(device, rng, bits):
    matrix = (Fp16Matrix((rng.standard_normal((2 * 48, 1088)) / 32).astype(np.float16)) if bits == 16 else
              random_matrix(rng, 2 * 48, 1088, 64, bits))
    x = activations(rng, 2, 1088)
    linear = {"norm": "rms", "norm_weight": rng.standard_normal(1088).astype(np.float32), "activation": "silu",
              "gated": 1, "act_scale": np.exp(rng.standard_normal(48)).astype(np.float32),
              "residual": rng.standard_normal((2, 48)).astype(np.float16)}
    grouped = {} if bits == 16 else {"group_size": 64}
    op = device.op("Fp16MatMul" if bits == 16 else f"Int{bits}MatMul", K=1088, N=96, norm=1, norm_epsilon=EPSILON,
                   activation=4, gated=1, has_act_scale=1, has_residual=1, **grouped)
    extras = [linear[name] for name in ("norm_weight", "act_scale", "residual")]
    y = device.poisoned((2, 48))
    weights = [matrix.stored] if bits == 16 else stored(matrix)
    op.run([device.put(each) for each in (x, *weights, *extras)], [y])
    tolerance = 0.0 if bits == 16 else cut(matrix, 2)
    assert_product(device.get(y), matrix, x, roundings(1088), tolerance, **linear)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("rows", [3, 6])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (4, 64), (8, 128)])
def test_norm_in_front(device, rng, bits, group_size, rows, norm):
    matrix, x = random_matrix(rng, 33, 320, group_size, bits), activations(rng, rows, 320)
    linear = {"norm": norm, "norm_weight": rng.standard_normal(320).astype(np.float32)}
    op = device.op(f"Int{bits}MatMul", K=320, N=33, group_size=group_size, norm=1 + (norm == "layer"),
                   norm_epsilon=EPSILON)
    y = device.poisoned((rows, 33))
    op.run([device.put(each) for each in (x, *stored(matrix), linear["norm_weight"])], [y])
    assert_product(device.get(y), matrix, x, roundings(320), cut(matrix, rows), **linear)


@pytest.mark.parametrize(("K", "rows", "norm"), [(4096, 6, "rms"), (4544, 5, "rms"), (2560, 8, None)])
def test_rows_that_fill_what_static_shared_memory_leaves(device, rng, K, rows, norm):
    """Up to 48 KiB of dynamic shared memory, and more together with the static."""
    matrix, x = random_matrix(rng, 16, K, 64), activations(rng, rows, K)
    linear = {"norm": norm, "norm_weight": rng.standard_normal(K).astype(np.float32)} if norm else {}
    op = device.op("Int4MatMul", K=K, N=16, group_size=64, norm=int(norm is not None), norm_epsilon=EPSILON)
    y = device.poisoned((rows, 16))
    op.run([device.put(each) for each in (x, *stored(matrix), *([linear["norm_weight"]] if norm else []))], [y])
    assert_product(device.get(y), matrix, x, roundings(K), cut(matrix, rows), **linear)


def test_same_input_same_bits(device, rng):
    matrix, x = random_matrix(rng, 400, 2112, 64), activations(rng, 5, 2112, outliers=3)
    results = {run_matmul(device, matrix, x).tobytes() for _ in range(20)}
    assert len(results) == 1


@pytest.mark.parametrize("special", [np.nan, np.inf], ids=str)
def test_non_finite_activations_reach_their_own_row_only(device, rng, special):
    matrix, x = random_matrix(rng, 18, 320, 128), activations(rng, 6, 320)
    clean = run_matmul(device, matrix, x)
    x[4, 300] = special
    y = run_matmul(device, matrix, x)
    assert not np.isfinite(y[4]).any()
    np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0))


ATTENTIONS = [Heads(kv=2, share=2, size=size, rotary=size) for size in (64, 80, 96, 112, 128, 256)]
ATTENTIONS += [Heads(kv=2, share=2, size=size, rotary=0, softcap=30.0) for size in (64, 80, 96, 112)]
ATTENTIONS += [Heads(kv=1, share=71, size=64, rotary=64), Heads(kv=2, share=4, size=128, rotary=32, window=100)]
ATTENTIONS += [Heads(kv=4, size=128, rotary=0, alibi=True), Heads(kv=2, share=2, size=256, rotary=256, softcap=50.0)]


def run_attention(device, step):
    heads = step.heads
    op = device.op("CachedAttention", num_heads=heads.kv * heads.share, kv_num_heads=heads.kv, head_size=heads.size,
                   scale=float(heads.scale), window=heads.window, softcap=heads.softcap, has_slopes=int(heads.alibi),
                   kv_bits=step.kv_bits)
    arrays = [step.key_cache, step.value_cache, step.key_scales, step.value_scales]
    caches = [device.put(each[None]) for each in arrays if each is not None]
    tables = [np.array([step.past]), step.cosines, step.sines, *[heads.op_slopes] * heads.alibi]
    inputs = [*(device.put(each[None]) for each in (step.q, step.k, step.v)), *caches, *map(device.put, tables)]
    y = device.poisoned((1, *step.q.shape))
    op.run(inputs, [y, *caches])
    return Result(device.get(y)[0], *(device.get(cache)[0] for cache in caches))


def check_attention(device, step):
    """y against float64, and the cache: the past as it was, the new values behind it."""
    result, heads, total = run_attention(device, step), step.heads, step.past + len(step.q)
    exact, bound = attention_reference(step, result)
    assert (np.abs(result.y - exact) <= CUT * bound).all()
    np.testing.assert_array_equal(result.key_cache[:, :step.past], step.key_cache[:, :step.past])
    np.testing.assert_array_equal(result.value_cache[:, step.past:total],
                                  step.v.reshape(-1, heads.kv, heads.size).transpose(1, 0, 2))


def name_of_heads(heads):
    return (f"{heads.kv}x{heads.share}x{heads.size}" + "-alibi" * heads.alibi + "-softcap" * bool(heads.softcap))


@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (63, 4), (300, 1), (300, 130)])
@pytest.mark.parametrize("heads", ATTENTIONS, ids=name_of_heads)
def test_attention_over_bytes(device, rng, heads, past, tokens):
    step = quantized(random_step(rng, heads, past, tokens, capacity=512))
    result = run_attention(device, step)
    exact, bound = attention_reference(step, result)
    assert (np.abs(result.y - exact) <= CUT * bound).all()
    check_caches(step, result)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("past", [0, 1, 63, 300])
@pytest.mark.parametrize("heads", ATTENTIONS, ids=name_of_heads)
def test_attention(device, rng, heads, past, tokens):
    check_attention(device, random_step(rng, heads, past, tokens, capacity=512))


@pytest.mark.parametrize(("past", "tokens"), [(0, 9), (37, 40), (300, 130)])
@pytest.mark.parametrize("heads", ATTENTIONS, ids=name_of_heads)
def test_attention_of_a_prompt(device, rng, heads, past, tokens):
    check_attention(device, random_step(rng, heads, past, tokens, capacity=512))


@pytest.mark.parametrize("past", [-1, 2**40 + 7, -(2**62)])
@pytest.mark.parametrize("tokens", [2, 9])
def test_a_length_that_is_none_touches_nothing(device, rng, tokens, past):
    step = random_step(rng, ATTENTIONS[0], 32, tokens, capacity=32 + tokens)
    result = run_attention(device, dataclasses.replace(step, past=past))
    np.testing.assert_array_equal(result.key_cache, step.key_cache)


def test_attention_large(device, rng):
    step = random_step(rng, Heads(kv=8, share=4, size=128, rotary=128), 4000, 1, capacity=4096)
    result = run_attention(device, step)
    exact, bound = attention_reference(step, result)
    assert (np.abs(result.y - exact) <= CUT * bound).all()


@pytest.mark.parametrize("size", [8, 768, 4544])
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_norms(device, rng, kind, size):
    x, delta = (rng.standard_normal((3, size)).astype(np.float16) for _ in range(2))
    weight = rng.standard_normal(size).astype(np.float32)
    y, hidden = device.poisoned(x.shape), device.poisoned(x.shape)
    op = device.op({"rms_norm": "RmsNorm", "layer_norm": "LayerNorm"}[kind], epsilon=EPSILON, has_delta=1)
    op.run([device.put(each) for each in (x, delta, weight)], [y, hidden])
    np.testing.assert_array_equal(device.get(hidden), x + delta)
    assert_normed(kind, device.get(y), device.get(hidden), weight)


@pytest.mark.parametrize("size", [1, 5003, 50257])
def test_argmax(device, rng, size):
    logits = rng.integers(-1000, 1000, (3, size)).astype(np.float32)  # with equals: the first wins
    tokens = device.poisoned((3,), np.int64)
    op = device.op("GreedyToken")
    for _ in range(3):
        op.run([device.put(logits)], [tokens])
        np.testing.assert_array_equal(device.get(tokens), logits.argmax(1))
    logits[1, -1] = np.nan
    op.run([device.put(logits)], [tokens])
    np.testing.assert_array_equal(device.get(tokens), logits.argmax(1) + np.array([0, 1 << 32, 0]))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_embedding(device, rng, bits):
    matrix, tokens = random_matrix(rng, 99, 320, 64, bits) if bits < 16 else None, rng.integers(0, 99, (1, 7))
    table = activations(rng, 99, 320) if matrix is None else matrix.weights.astype(np.float16)
    op = device.op("TokenEmbedding", vocabulary=99, size=320, bits=bits, group_size=64)
    y = device.poisoned((1, 7, 320))
    op.run([device.put(each) for each in (tokens, *([table] if matrix is None else stored(matrix)))], [y])
    np.testing.assert_array_equal(device.get(y), table[tokens])
@pytest.mark.parametrize("size", [1, 5003, 50257])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_sample(device, rng, settings, size):
    """A token that is not numpy's is one whose limit is near; near a filter's limit one token more or less may stay."""
    logits, seed, step = (3 * rng.standard_normal((3, size))).astype(np.float32), int(rng.integers(2**62)), 2**33 + 5
    given = logits, settings_of(settings), np.array([seed]), np.array([step])
    inputs = [device.put(each) for each in given]
    found = []
    for _ in range(2):
        tokens = device.poisoned((3,), np.int64)
        device.op("SampleToken").run(inputs, [tokens])
        found.append(device.get(tokens).tolist())
    assert found[0] == found[1]
    for row, token in enumerate(found[0]):
        probabilities, error = weights_of(filtered(logits[row], settings))
        cumulative, u = np.cumsum(probabilities), uniform(seed, step + row)
        if token != np.searchsorted(cumulative, u, side="right"):
            assert np.abs(cumulative - u).min() <= error + probabilities[probabilities > 0].min()


def test_read_ceiling_reads_everything(device, rng):
    data, blocks = rng.integers(0, 2**32, 4 * 100_003, dtype=np.uint32), 7
    sums = device.poisoned((blocks * 256,), np.uint32)
    device.read_memory(device.put(data), sums, blocks)
    assert device.get(sums).sum(dtype=np.uint32) == data.sum(dtype=np.uint32)


def test_dependent_launch_changes_nothing(device, rng):
    matrix, x = random_matrix(rng, 400, 2112, 128), activations(rng, 3, 2112)
    plain = run_matmul(device, matrix, x)
    device.library.edge_awq_set_dependent_launch(1)
    try:
        np.testing.assert_array_equal(run_matmul(device, matrix, x), plain)
    finally:
        device.library.edge_awq_set_dependent_launch(0)


def chain(device, rng, bits, rows):
    """A decoder of one layer, each launch reading what those before wrote.

    Returns:
        Its tokens, which it reads and writes; its launches, each (op, inputs, outputs, workspace); hidden and logits.
    """
    heads, kv, size, K, vocabulary = 4, 2, 64, 256, 96

    def weights(N):
        return [device.put(each) for each in stored(random_matrix(rng, N, K, 64, bits))]

    def linear(N, **more):
        return device.op(f"Int{bits}MatMul", K=K, N=N, group_size=64, **more)

    def halves(*shape):
        return device.put((0.1 * rng.standard_normal(shape)).astype(np.float16))

    ones = device.put(np.ones(K, np.float32))
    normed, scale = ({"norm": 1, "norm_epsilon": EPSILON}, [ones]) if rows <= GEMV_ROWS else ({}, [])
    hidden, q, k, v, y = (device.poisoned((1, rows, columns)) for columns in (K, heads * size, kv * size, kv * size, K))
    tokens, logits = device.poisoned((1, rows), np.int64), device.poisoned((1, rows, vocabulary), np.float32)
    angles, caches = rng.uniform(0, 7, (64, size // 2)).astype(np.float32), [halves(1, kv, 64, size) for _ in range(2)]
    attention = device.op("CachedAttention", num_heads=heads, kv_num_heads=kv, head_size=size, scale=0.125, window=0,
                          softcap=0.0, has_slopes=0)
    tables = [device.put(each) for each in (np.array([20]), np.cos(angles), np.sin(angles))]
    embedding = device.op("TokenEmbedding", vocabulary=vocabulary, size=K)
    steps = [(embedding, [tokens, halves(vocabulary, K)], [hidden])]
    steps += [(linear(out.shape[-1], **normed), [hidden, *weights(out.shape[-1]), *scale], [out]) for out in (q, k, v)]
    steps += [(attention, [q, k, v, *caches, *tables], [y, *caches]),
              (linear(K, has_residual=1), [y, *weights(K), hidden], [hidden]),
              (device.op("RmsNorm", epsilon=EPSILON), [hidden, ones], [y]),
              (linear(vocabulary, fp32_output=1), [y, *weights(vocabulary)], [logits]),
              (device.op("GreedyToken"), [logits], [tokens])]
    return tokens, [(op, inputs, outputs, op.workspace(inputs)) for op, inputs, outputs in steps], [hidden, logits]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 12])
def test_a_chain_of_dependent_launches(device, rng, rows, bits):
    """Nobody waits between: what one launch writes the next reads, after griddepcontrol.wait if it began early."""
    tokens, steps, results = chain(device, rng, bits, rows)
    seen = []
    for is_dependent in (0, 1, 1):
        device.gpu.write(tokens.address, np.arange(rows, dtype=np.int64))
        device.gpu.synchronize()
        device.library.edge_awq_set_dependent_launch(is_dependent)
        try:
            for op, inputs, outputs, workspace in 2 * steps:
                op.launch(inputs, outputs, workspace)
            device.gpu.synchronize()
        finally:
            device.library.edge_awq_set_dependent_launch(0)
        assert np.isfinite(device.get(results[1])).all()
        seen.append([device.get(each).tobytes() for each in (tokens, *results)])
    assert seen[0] == seen[1] == seen[2]


def test_a_captured_graph_computes_the_same(device, rng):
    matrix, x = random_matrix(rng, 64, 256, 128), activations(rng, 1, 256)
    op = device.op("Int4MatMul", K=256, N=64, group_size=128)
    inputs, y = [device.put(each) for each in (x, *stored(matrix))], device.poisoned((1, 64))
    workspace = op.workspace(inputs)
    graph = device.gpu.capture(lambda: op.launch(inputs, [y], workspace))
    assert np.isnan(device.get(y)).all()  # captured, not run
    assert graph.seconds() > 0
    assert_product(device.get(y), matrix, x, roundings(256))
    graph.close()
