"""Int4MatMul(x, q, s, z), Int8MatMul(x, q, s, z)  ->  x @ DequantizeLinear(q - middle, s).T

The middle is 8 of 16, or 128 of 256: x - 8 in two's complement is x with its highest bit flipped, so the stored bytes
become TensorRT's by one exclusive or. Every zero point must be the middle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edge_awq.engine.ort.graph import Graph, attributes
from edge_awq.engine.standard.constants import read_bytes
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import INT4_MATMUL, INT8_MATMUL

SIGNED = {TensorProto.UINT4: TensorProto.INT4, TensorProto.UINT8: TensorProto.INT8}


def find(graph: Graph) -> list[NodeProto]:
    """Every quantized matmul."""
    return [node for op in (INT4_MATMUL, INT8_MATMUL) for node in graph.calls(op)]


def rewrite(graph: Graph, node: NodeProto, weights: Path) -> None:
    """Put dequantization, transposition and product in its place.

    Raises:
        EdgeAwqError: a zero point is not the middle.
    """
    x, qweight, scales, zero_points = node.input
    _check_symmetric(node, graph.initializer(zero_points), graph.initializer(scales).dims[1], weights)
    matrix = graph.initializer(qweight)
    matrix.data_type = SIGNED[matrix.data_type]
    graph.initializer(scales).data_type = _activations(graph)
    rows, columns = f"{node.name}.rows", f"{node.name}.columns"
    graph.replace([node], [
        helper.make_node("DequantizeLinear", [qweight, scales], [rows], rows, axis=1,
                         block_size=attributes(node)["group_size"]),
        helper.make_node("Transpose", [rows], [columns], columns, perm=[1, 0]),
        helper.make_node("MatMul", [x, columns], node.output, node.name),
    ])


def _activations(graph: Graph) -> int:
    return graph.inputs["past_key_0"].type.tensor_type.elem_type


def _check_symmetric(node: NodeProto, zero_points: TensorProto, groups: int, weights: Path) -> None:
    stored = np.frombuffer(read_bytes(zero_points, weights), np.uint8).reshape(zero_points.dims[0], -1)
    middle = 128
    if zero_points.data_type == TensorProto.UINT4:
        stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1)[:, :groups]
        middle = 8
    others = int((stored != middle).sum())
    if others:
        raise EdgeAwqError(
            f"{node.name}: {others} of {stored.size} zero points are not {middle}, and TensorRT's own int4 has none",
            hint="build the bundle with --symmetric, or use the engines with edge-awq's plugins",
        )
