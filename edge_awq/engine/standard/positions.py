"""Positions of the new tokens, [1, tokens] int64: past_length, past_length + 1, ...

    table[past_length : past_length + tokens]  ->  Gather(table, positions)

A slice at past_length would make it a shape, which TensorRT wants to know on the host before every step.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edge_awq.engine.ort.graph import Graph
from edge_awq.engine.standard.types import constant

POSITIONS = "positions.new"


def add(graph: Graph) -> None:
    """Compute the positions, and look up learned ones by them."""
    readers = graph.readers("past_length")
    for name, value in (("zero", 0), ("one", 1)):
        graph.constant(constant(f"positions.{name}", np.array(value), TensorProto.INT64))
    graph.constant(constant("positions.scalar", np.array([0]), TensorProto.INT64))
    graph.nodes[:0] = [
        _node("Shape", ["input_ids"], "positions.length", start=1, end=2),
        _node("Squeeze", ["positions.length", "positions.scalar"], "positions.count"),
        _node("Range", ["positions.zero", "positions.count", "positions.one"], "positions.offsets"),
        _node("Add", ["positions.offsets", "past_length"], "positions.row"),
        _node("Unsqueeze", ["positions.row", "positions.scalar"], POSITIONS),
    ]
    for node in readers:
        if node.op_type == "Slice" and node.input[1] == "past_length":
            graph.replace([node], [helper.make_node("Gather", [node.input[0], POSITIONS], node.output, node.name)])


def _node(kind: str, inputs: list[str], name: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, inputs, [name], name, **attributes)
