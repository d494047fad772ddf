"""The kernels compute what the ops mean: their ONNX function bodies, run by ONNX's reference evaluator.

How exact the kernels are is tested elsewhere; here a different meaning would show, such as another pairing of rotated
values or another end of the window.
"""

import numpy as np
import pytest
from attention_harness import Heads, prefill, random_step, run
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


def assert_attention_near(step, result):
    heads, valid = step.heads, slice(0, step.past + len(step.q))
    attributes = {"num_heads": heads.kv * heads.share, "kv_num_heads": heads.kv, "head_size": heads.size,
                  "scale": heads.scale, "window": heads.window, "softcap": heads.softcap}
    tensors = {"q": step.q, "k": step.k, "v": step.v, "past_key": step.key_cache, "past_value": step.value_cache}
    slopes = np.zeros(heads.kv * heads.share, np.float32) if heads.slopes is None else heads.slopes
    y, key, value = evaluate(
        ops.CACHED_ATTENTION, attributes, **{name: each[None].astype(np.float32) for name, each in tensors.items()},
        past_length=np.array([step.past]), cos=step.cosines, sin=step.sines, slopes=slopes)
    assert_near(result.y, y[0])
    assert_near(result.key_cache[:, valid], key[0, :, valid])
    np.testing.assert_array_equal(result.value_cache[:, valid], value[0, :, valid])


every_meaning = pytest.mark.parametrize("heads", [
    Heads(kv=2, share=3),
    Heads(kv=1, share=2, size=80, rotary=32),
    Heads(kv=2, size=128, rotary=128, window=9),
    Heads(kv=1, share=2, softcap=2.0),
    Heads(kv=2, share=2, rotary=0, alibi=True),
], ids=["shared", "partly-rotated", "window", "softcap", "alibi"])


@every_meaning
@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (20, 1), (20, 4)])
def test_cached_attention(rng, heads, past, tokens):
    step = random_step(rng, heads, past, tokens)
    assert_attention_near(step, run(step, splits=2))


@every_meaning
@pytest.mark.parametrize("past", [0, 20])
def test_cached_attention_of_a_prompt(rng, heads, past):
    step = random_step(rng, heads, past, tokens=12)
    assert_attention_near(step, prefill(step))
