"""Int4MatMul(x, q, s, z), Int8MatMul(x, q, s, z)  ->  MatMulNBits(x, q, float(s), z)

Both compute x @ W.T with W = (q - z) * s, and onnxruntime's kernel takes q and z as they are stored: the constants are
the same bytes, described as uint8 blocks of one group each. The scales' Cast to float32 is folded when a session loads.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

from edge_awq.engine.ort.graph import MICROSOFT, Graph, attributes
from edge_awq.engine.ort.rules.declined import Declined
from edge_awq.export.ops import INT4_MATMUL, INT8_MATMUL

BITS = {INT4_MATMUL.name: 4, INT8_MATMUL.name: 8}
KERNEL = "MatMulNBits"
INT8_ACTIVATIONS, FLOAT_ACTIVATIONS = 4, 0  # values of the kernel's accuracy_level
SMALLEST_BLOCK = 16


def find(graph: Graph) -> list[tuple[NodeProto, ...]]:
    """Every quantized matmul."""
    return [(node,) for op in (INT4_MATMUL, INT8_MATMUL) for node in graph.calls(op)]


def rewrite(graph: Graph, match: tuple[NodeProto, ...]) -> Declined | None:
    """Describe the constants as the kernel wants them and call it, with int8 activations."""
    (node,) = match
    features, width, group_size = (int(attributes(node)[name]) for name in ("N", "K", "group_size"))
    bits = BITS[node.op_type]
    if group_size < SMALLEST_BLOCK or group_size & (group_size - 1) or width % group_size:
        return Declined(f"group size {group_size} at K = {width}: a power of two from 16 that divides K is needed")
    x, qweight, scales, zero_points = node.input
    if not all(graph.initializer(name) and graph.readers(name) == [node] for name in (qweight, zero_points)):
        return Declined("its weights are no constants of its own")

    groups = width // group_size
    graph.constant(_as_bytes(graph.initializer(qweight), [features, groups, group_size * bits // 8]))
    graph.constant(_as_bytes(graph.initializer(zero_points), [features, -(-groups * bits // 8)]))
    float_scales = helper.make_node("Cast", [scales], [f"{scales}.float"], f"{scales}.float", to=TensorProto.FLOAT)
    kernel = helper.make_node(
        KERNEL,
        [x, qweight, float_scales.output[0], zero_points],
        node.output,
        node.name,
        domain=MICROSOFT,
        K=width,
        N=features,
        bits=bits,
        block_size=group_size,
        accuracy_level=INT8_ACTIVATIONS,
    )
    graph.replace([node], [float_scales, kernel])
    return None


def _as_bytes(tensor: TensorProto, dims: list[int]) -> TensorProto:
    """The same stored bytes as a uint8 constant of other dimensions."""
    described = TensorProto()
    described.CopyFrom(tensor)
    described.data_type = TensorProto.UINT8
    described.dims[:] = dims
    return described
