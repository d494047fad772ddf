"""CachedAttention(q, k, v, cache, past_length)  ->  GroupQueryAttention([q|k|v], cache, past_length + tokens)

onnxruntime's kernel rotates, writes the cache in place where past and present are one buffer, and masks causally and by
window. The length comes from two graph inputs, so no mask is ever computed. Where q, k and v are the
parts of one merged linear, the kernel takes the whole and the Split goes. What it does not rotate itself is rotated by
RotaryEmbedding nodes before it. ALiBi comes in as an added bias, computed once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_awq.engine.ort.graph import MICROSOFT, Graph, attributes
from edge_awq.engine.ort.inputs import LAST_POSITION, TOTAL_LENGTH
from edge_awq.engine.ort.rules.declined import Declined
from edge_awq.engine.ort.windows import METADATA_KEY, UNLIMITED, counting, kernel_window
from edge_awq.export.ops import CACHED_ATTENTION

HEAD_STEP, ROTATED_HEAD_STEP, ROTARY_STEP = 8, 16, 8  # the kernel's vector sizes
BIAS = "alibi.bias"  # float32 [1, num_heads, tokens, total]
UNUSED = ""


def find(graph: Graph) -> list[tuple[NodeProto, ...]]:
    """Every attention."""
    return [(node,) for node in graph.calls(CACHED_ATTENTION)]


def rewrite(graph: Graph, match: tuple[NodeProto, ...]) -> Declined | None:
    """Call the kernel, with the packed linear where there is one."""
    (node,) = match
    given = attributes(node)
    q, k, v, past_key, past_value, past_length, cos, sin, slopes = node.input
    if given["head_size"] % HEAD_STEP:
        return Declined(f"head size {given['head_size']} is no multiple of {HEAD_STEP}")
    table, tilt = graph.initializer(cos), graph.initializer(slopes)
    if table is None:
        return Declined("the rotary tables are no constants")
    if tilt is None:
        return Declined("the slopes are no constants")

    for name in (LAST_POSITION, TOTAL_LENGTH):
        graph.inputs[name] = helper.make_tensor_value_info(name, TensorProto.INT32, [1])
    positions, columns = table.dims
    inside = columns > 0 and given["head_size"] % ROTATED_HEAD_STEP == 0 and columns % ROTARY_STEP == 0
    before: list[NodeProto] = []
    if columns > 0 and not inside:
        before = [_rotation(node, part, heads, 2 * columns)
                  for part, heads in ((q, given["num_heads"]), (k, given["kv_num_heads"]))]
        q, k = (rotation.output[0] for rotation in before)
    split = _whole(graph, [q, k, v])
    projections = [split.input[0], UNUSED, UNUSED] if split else [q, k, v]
    inputs = [*projections, past_key, past_value, LAST_POSITION, TOTAL_LENGTH,
              *((cos, sin) if inside else (UNUSED, UNUSED))]
    if np.any(numpy_helper.to_array(tilt)):
        before += _bias(graph, past_length, numpy_helper.to_array(tilt))
        inputs += [UNUSED, BIAS]  # the ninth is position_ids
    kernel = helper.make_node(
        "GroupQueryAttention",
        inputs,
        node.output,
        node.name,
        domain=MICROSOFT,
        do_rotary=int(inside),
        local_window_size=_window(graph, int(given["window"]), positions),
        **{name: given[name] for name in ("num_heads", "kv_num_heads", "scale", "softcap")},
    )
    graph.replace([split, node] if split else [node], [*before, kernel])
    return None


def _rotation(node: NodeProto, part: str, heads: int, rotary_size: int) -> NodeProto:
    """q or k [1, tokens, heads * head_size] turned to the positions from past_length on."""
    name = f"{part}.rotated"
    past_length, cos, sin = node.input[5:8]
    return helper.make_node("RotaryEmbedding", [part, past_length, cos, sin], [name], name, domain=MICROSOFT,
                            num_heads=heads, rotary_embedding_dim=rotary_size)


def _bias(graph: Graph, past_length: str, slopes: np.ndarray) -> list[NodeProto]:
    """slope * (key position - query position); nothing where an earlier layer has made it."""
    if graph.producer(BIAS, "Mul") is not None:
        return []

    def constant(name: str, values: np.ndarray) -> str:
        return graph.constant(numpy_helper.from_array(values, f"alibi.{name}"))

    def node(kind: str, inputs: Sequence[str], name: str, **given: int) -> NodeProto:
        return helper.make_node(kind, inputs, [f"alibi.{name}"], f"alibi.{name}", **given)

    first, step = constant("first", np.array(0, np.int64)), constant("step", np.array(1, np.int64))
    axis, columns = constant("axis", np.array([1])), constant("columns", slopes.reshape(1, -1, 1, 1))
    return [
        node("Cast", [TOTAL_LENGTH], "total", to=TensorProto.INT64),
        node("Squeeze", ["alibi.total"], "count"),
        node("Range", [first, "alibi.count", step], "places"),
        node("Cast", ["alibi.places"], "keys", to=TensorProto.FLOAT),  # [total]
        node("Slice", ["alibi.keys", past_length, "alibi.total"], "newest"),
        node("Unsqueeze", ["alibi.newest", axis], "queries"),  # [tokens, 1]
        node("Sub", ["alibi.keys", "alibi.queries"], "distance"),
        node("Mul", ["alibi.distance", columns], "bias"),
    ]


def _window(graph: Graph, window: int, positions: int) -> int:
    """``local_window_size``; a window that holds every position there can be is none."""
    if window == 0 or window >= positions:
        return UNLIMITED
    graph.metadata[METADATA_KEY] = counting()
    return kernel_window(window)


def _whole(graph: Graph, projections: list[str]) -> NodeProto | None:
    """The Split whose parts are exactly q, k and v, read by nothing else."""
    split = graph.producer(projections[0], "Split")
    exact = split is not None and list(split.output) == projections
    return split if exact and all(len(graph.readers(part)) == 1 for part in projections) else None
