"""The kernels compute what the ops mean: their ONNX function bodies, run by ONNX's reference evaluator.

How exact the kernels are is tested elsewhere; here a different meaning would show, such as another pairing of rotated
values or another end of the window.
"""

import numpy as np
import pytest
from attention_harness import Heads, random_step, run
from matmul_harness import activations, random_matrix
from onnx.reference import ReferenceEvaluator

from edge_awq.export import ops

# Relative L2. Inputs, weights of the softmax and results are rounded to fp16, 2^-11 each, independently of each other.
LIMIT = 2.0**-9


def evaluate(op, attributes, **inputs):
    return ReferenceEvaluator(ops.function(op)).run(None, inputs, attributes=attributes)


def assert_near(kernel, body):
    assert np.linalg.norm(kernel - body) <= LIMIT * np.linalg.norm(body)


@pytest.mark.parametrize("rows", [5, 21])
@pytest.mark.parametrize(("group_size", "K"), [(128, 384), (64, 320)])
def test_int4_matmul(rng, group_size, K, rows):
    matrix, x = random_matrix(rng, 24, K, group_size), activations(rng, rows, K)
    zero_points = np.pad(matrix.zeros, ((0, 0), (0, matrix.zeros.shape[1] % 2)))
    y, = evaluate(ops.INT4_MATMUL, {"K": K, "N": 24, "group_size": group_size}, x=x.astype(np.float32),
                  qweight=matrix.q, scales=matrix.scales, zero_points=zero_points)
    assert_near(matrix.matmul(x), y)


@pytest.mark.parametrize("heads", [
    Heads(kv=2, share=3),
    Heads(kv=1, share=2, size=80, rotary=32),
    Heads(kv=2, size=128, rotary=128, window=9),
], ids=["shared", "partly-rotated", "window"])
@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (20, 1), (20, 4)])
def test_cached_attention(rng, heads, past, tokens):
    step = random_step(rng, heads, past, tokens)
    attributes = {"num_heads": heads.kv * heads.share, "kv_num_heads": heads.kv, "head_size": heads.size,
                  "scale": heads.scale, "window": heads.window, "softcap": 0.0}
    tensors = {"q": step.q, "k": step.k, "v": step.v, "past_key": step.key_cache, "past_value": step.value_cache}
    y, key, value = evaluate(
        ops.CACHED_ATTENTION, attributes, **{name: each[None].astype(np.float32) for name, each in tensors.items()},
        past_length=np.array([past]), cos=step.cosines, sin=step.sines,
        slopes=np.zeros(heads.kv * heads.share, np.float32))
    result, valid = run(step, splits=2), slice(0, past + tokens)
    assert_near(result.y, y[0])
    assert_near(result.key_cache[:, valid], key[0, :, valid])
    np.testing.assert_array_equal(result.value_cache[:, valid], value[0, :, valid])
