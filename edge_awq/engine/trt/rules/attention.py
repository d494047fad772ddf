"""CachedAttention(q, k, v, past, ..)  ->  the plugin of the same name, with a cache of float16, or of bytes and scales

Where nothing is rotated the tables have no columns, and TensorRT would meet tensors without elements. They become one
column of ones and one of zeros, which rotates the first pair of each head by nothing: the same numbers.

A cache of bytes (``LoweringOptions.kv_bits`` is 8) travels as int8 and has two more inputs and outputs in each layer:
past_key_scale_{i}, past_value_scale_{i} and present_* float32 [1, kv_heads, context].

Slopes that are all zero are left out, and ``has_slopes`` says so: kernels without a bias are faster.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft, constant
from edge_awq.engine.trt.names import ATTENTION, DOMAIN, HEAD_SIZES
from edge_awq.errors import EdgeAwqError

CACHE_TYPES = {16: "float16", 8: "int8"}
INTEGERS, FLOATS = ("num_heads", "kv_num_heads", "head_size", "window"), ("scale", "softcap")


def apply(draft: Draft) -> None:
    """Replace every attention.

    Raises:
        EdgeAwqError: no kernel computes its head size, or has caches of so many bits.
    """
    bits = draft.options.kv_bits
    if bits not in CACHE_TYPES:
        raise EdgeAwqError(f"kv_bits = {bits}: no kernel has such a cache", hint="16 and 8 are there")
    unrotated: dict[str, gs.Constant] = {}
    for node in draft.nodes(ATTENTION):
        if node.domain == DOMAIN:
            continue
        given = {name: int(node.attrs[name]) for name in INTEGERS}
        given |= {name: float(node.attrs[name]) for name in FLOATS}
        if given["head_size"] not in HEAD_SIZES:
            raise EdgeAwqError(f"{node.name}: no kernel has head size {given['head_size']}, only "
                               f"{', '.join(map(str, HEAD_SIZES))}", hint="run this model on the target cpu")
        *before, cos, sin, slopes = node.inputs
        tables = [_rotated(table, value, unrotated) for table, value in ((cos, 1.0), (sin, 0.0))]
        for cache in (*before[3:5], *node.outputs[1:]):
            cache.dtype = np.dtype(CACHE_TYPES[bits])
        *before, past_length = before
        if bits == 8:
            before += _add_scales(draft, node)
            given["kv_bits"] = bits
        tilt = [] if _are_zeros(slopes) else [slopes]
        draft.replace(node, ATTENTION, [*before, past_length, *tables, *tilt], has_slopes=len(tilt), **given)


def _add_scales(draft: Draft, node: gs.Node) -> list[gs.Variable]:
    """Scales of keys and values become inputs and outputs of the graph, and outputs of the node; returns the inputs."""
    past, present = ([gs.Variable(re.sub(r"(key|value)", r"\1_scale", cache.name), np.dtype("float32"), cache.shape[:3])
                      for cache in caches] for caches in (node.inputs[3:5], node.outputs[1:3]))
    draft.graph.inputs += past
    draft.graph.outputs += present
    node.outputs += present
    return past


def _are_zeros(slopes: gs.Tensor) -> bool:
    """Whether they are constants, and no head has a bias."""
    return isinstance(slopes, gs.Constant) and not slopes.values.any()


def _rotated(table: gs.Tensor, value: float, unrotated: dict[str, gs.Constant]) -> gs.Tensor:
    positions, columns = table.shape
    if columns:
        return table
    return unrotated.setdefault(table.name, constant(f"{table.name}.still", np.full((positions, 1), value), "float32"))
