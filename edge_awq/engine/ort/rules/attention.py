"""CachedAttention(q, k, v, cache, past_length)  ->  GroupQueryAttention([q|k|v], cache, past_length + tokens)

onnxruntime's kernel rotates, writes the cache in place where past and present are one buffer, and masks causally and by
window. The length comes from two graph inputs, so no mask is ever computed. Where q, k and v are the
parts of one merged linear, the kernel takes the whole and the Split goes.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

from edge_awq.engine.ort.graph import MICROSOFT, Graph, attributes
from edge_awq.engine.ort.inputs import LAST_POSITION, TOTAL_LENGTH
from edge_awq.engine.ort.rules.declined import Declined
from edge_awq.engine.ort.windows import METADATA_KEY, UNLIMITED, counting, kernel_window
from edge_awq.export.ops import CACHED_ATTENTION

HEAD_STEP, ROTARY_STEP = 16, 8  # the kernel's vector sizes


def find(graph: Graph) -> list[tuple[NodeProto, ...]]:
    """Every attention."""
    return [(node,) for node in graph.calls(CACHED_ATTENTION)]


def rewrite(graph: Graph, match: tuple[NodeProto, ...]) -> Declined | None:
    """Call the kernel with the packed linear where there is one."""
    (node,) = match
    given = attributes(node)
    *projections, past_key, past_value, _, cos, sin = node.input
    if given["head_size"] % HEAD_STEP:
        return Declined(f"head size {given['head_size']} is no multiple of {HEAD_STEP}")
    table = graph.initializer(cos)
    if table is None or table.dims[1] % ROTARY_STEP:
        found = table.dims[1] if table is not None else "no constant"
        return Declined(f"columns of the rotary tables: {found}, the kernel needs a multiple of {ROTARY_STEP}")

    for name in (LAST_POSITION, TOTAL_LENGTH):
        graph.inputs[name] = helper.make_tensor_value_info(name, TensorProto.INT32, [1])
    split = _whole(graph, projections)
    inputs = [split.input[0], "", ""] if split else projections
    kernel = helper.make_node(
        "GroupQueryAttention",
        [*inputs, past_key, past_value, LAST_POSITION, TOTAL_LENGTH, cos, sin],
        node.output,
        node.name,
        domain=MICROSOFT,
        do_rotary=1,
        local_window_size=_window(graph, int(given["window"]), table.dims[0]),
        **{name: given[name] for name in ("num_heads", "kv_num_heads", "scale")},
    )
    graph.replace([split, node] if split else [node], [kernel])
    return None


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
