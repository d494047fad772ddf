"""Body of CachedAttention against attention in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from onnx import TensorProto
from onnx_models import FLOAT32_ROUNDING, RUNTIMES, one_op_model, relative_l2

from edge_awq.export import ops
from edge_awq.model.alibi import alibi_slopes
from edge_awq.model.decoder import attention_mask, rotate

CAPACITY = 16
# A score sums at most 32 products, an output at most 16, a softmax as many: about 70 roundings of 6e-8 at worst.
LIMIT = 70 * FLOAT32_ROUNDING


@dataclass(frozen=True)
class Case:
    """``calls``: new tokens in each call, the cache going from one to the next; max_bias: ALiBi's, None for none."""

    heads: int
    kv_heads: int
    head_size: int
    rotary_size: int
    window: int
    calls: tuple[int, ...]
    max_bias: float | None = None
    softcap: float = 0.0

    @property
    def slopes(self) -> np.ndarray:
        return np.zeros(self.heads, np.float32) if self.max_bias is None else alibi_slopes(self.heads, self.max_bias)


CASES = {
    "prefill": Case(4, 4, 32, 32, 0, (13,)),
    "chunked-prefill": Case(4, 4, 32, 32, 0, (5, 4, 4)),
    "decode": Case(4, 4, 32, 32, 0, (10, 1, 1, 1)),
    "one-head-from-one-token": Case(1, 1, 8, 8, 0, (1, 1, 1)),
    "three-heads-share": Case(6, 2, 16, 16, 0, (7, 5, 1)),
    "all-heads-share": Case(8, 1, 16, 16, 0, (7, 5, 1)),
    "window": Case(6, 2, 16, 16, 4, (7, 5, 1)),
    "window-of-itself": Case(4, 4, 16, 16, 1, (3, 1)),
    "window-beyond-context": Case(4, 2, 16, 16, 64, (7, 5, 1)),
    "partly-rotated": Case(4, 2, 16, 6, 0, (7, 5, 1)),
    "filled-to-capacity": Case(4, 2, 16, 16, 3, (12, 4)),
    "not-rotated": Case(4, 2, 16, 0, 0, (7, 5, 1)),
    "alibi": Case(4, 4, 16, 0, 0, (7, 5, 1), max_bias=8),
    "alibi-of-shared-heads": Case(6, 2, 16, 0, 0, (7, 5, 1), max_bias=4),
    "softcap": Case(4, 2, 16, 16, 0, (7, 5, 1), softcap=0.5),
    "softcap-window-alibi": Case(6, 2, 16, 16, 4, (7, 5, 1), max_bias=8, softcap=1.5),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=RUNTIMES)
def run(request, case):
    """The op as a function of its inputs."""
    cache = (1, case.kv_heads, "capacity", case.head_size)
    q, k = ((1, "tokens", heads * case.head_size) for heads in (case.heads, case.kv_heads))
    table = ("positions", case.rotary_size // 2)
    op = ops.CACHED_ATTENTION
    shapes = dict(zip(op.inputs, (q, k, k, cache, cache, (1,), table, table, (case.heads,)), strict=True))
    inputs = {name: (TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    inputs["past_length"] = (TensorProto.INT64, (1,))
    outputs = dict(zip(op.outputs, (inputs["q"], inputs["past_key"], inputs["past_value"]), strict=True))
    attributes = {
        "num_heads": case.heads,
        "kv_num_heads": case.kv_heads,
        "head_size": case.head_size,
        "scale": case.head_size**-0.5,
        "window": case.window,
        "softcap": case.softcap,
    }
    return RUNTIMES[request.param](one_op_model(op, attributes, inputs, outputs))


def random_inputs(case: Case) -> dict[str, np.ndarray]:
    """q, k, v of all tokens, and tables longer than the cache."""
    rng = np.random.default_rng(0)
    sizes = {"q": case.heads, "k": case.kv_heads, "v": case.kv_heads}
    inputs = {name: rng.standard_normal((1, sum(case.calls), n * case.head_size)) for name, n in sizes.items()}
    angles = rng.uniform(0, 2 * np.pi, (CAPACITY + 3, case.rotary_size // 2))
    inputs |= {"cos": np.cos(angles), "sin": np.sin(angles), "slopes": case.slopes}
    return {name: array.astype(np.float32) for name, array in inputs.items()}


def attend(case: Case, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In float64: y [1, tokens, heads * head_size], rotated keys and values [1, kv_heads, tokens, head_size]."""
    exact = {name: torch.from_numpy(array).double() for name, array in inputs.items()}
    tokens = inputs["q"].shape[1]
    query, key, value = (exact[name].view(1, tokens, -1, case.head_size).transpose(1, 2) for name in "qkv")
    query, key = (rotate(part, exact["cos"][:tokens], exact["sin"][:tokens]) for part in (query, key))
    share = case.heads // case.kv_heads
    scores = case.head_size**-0.5 * query @ key.repeat_interleave(share, dim=1).transpose(2, 3)
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    scores = scores - exact["slopes"][:, None, None] * distance
    scores = scores.masked_fill(~attention_mask(tokens, tokens, case.window or None), -torch.inf)
    mixed = scores.softmax(-1) @ value.repeat_interleave(share, dim=1)
    return mixed.transpose(1, 2).reshape(inputs["q"].shape).numpy(), key.numpy(), value.numpy()


@pytest.mark.parametrize("unused", [np.nan, 1e30], ids=["nan", "large"])
def test_every_call_equals_attention_over_all_tokens(run, case, unused):
    """Rows of the cache that hold no token are filled with ``unused``: never read, and handed on as they are."""
    inputs = random_inputs(case)
    expected, keys, values = attend(case, inputs)
    past_key = past_value = np.full((1, case.kv_heads, CAPACITY, case.head_size), unused, np.float32)
    done = 0
    for count in case.calls:
        new = {name: inputs[name][:, done : done + count] for name in "qkv"}
        past = {"past_key": past_key, "past_value": past_value, "past_length": np.array([done])}
        found, past_key, past_value = run({**inputs, **new, **past})
        assert relative_l2(found, expected[:, done : done + count]) <= LIMIT
        done += count
        assert relative_l2(past_key[:, :, :done], keys[:, :, :done]) <= 3 * FLOAT32_ROUNDING  # a cos - b sin
        np.testing.assert_array_equal(past_value[:, :, :done], values[:, :, :done])
        for cache in (past_key, past_value):
            assert cache.shape[2] == CAPACITY
            np.testing.assert_array_equal(cache[:, :, done:], np.float32(unused))
