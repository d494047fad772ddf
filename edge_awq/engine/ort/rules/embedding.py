"""float(table[ids])  ->  embedded, a graph input

The engine reads the rows from the weights file itself. Left in the graph, the table is a mapping of which every token
makes whole blocks resident, until the process holds nearly all of it (131 MB of a 1.1 B model).
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

from edge_awq.engine.ort.embedding import TABLE
from edge_awq.engine.ort.graph import Graph
from edge_awq.engine.ort.inputs import EMBEDDED
from edge_awq.engine.ort.rules.declined import Declined


def find(graph: Graph) -> list[tuple[NodeProto, ...]]:
    """The lookup of rows of the token embedding, and their Cast."""
    pairs = ((node, graph.only_reader(node.output[0], "Cast")) for node in graph.readers(TABLE))
    return [(gather, cast) for gather, cast in pairs if gather.op_type == "Gather" and cast is not None]


def rewrite(graph: Graph, match: tuple[NodeProto, ...]) -> Declined | None:
    """Whoever read the Cast's output reads the input."""
    gather, cast = match
    table, ids = graph.initializer(TABLE), graph.inputs.get(gather.input[1])
    if table is None or ids is None:
        return Declined(f"{gather.name} does not look up token ids in a stored table")
    tokens = ids.type.tensor_type.shape.dim[1].dim_param
    shape = [1, tokens, table.dims[1]]
    graph.inputs[EMBEDDED] = helper.make_tensor_value_info(EMBEDDED, TensorProto.FLOAT, shape)
    passed_on = helper.make_node("Identity", [EMBEDDED], cast.output, cast.name)
    graph.replace([gather, cast], [passed_on])
    return None
