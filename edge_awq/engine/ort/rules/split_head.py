"""x @ W  ->  concat(x @ W[:n], x @ W[n:2n], ...), for a head of many megabytes

While a session loads, onnxruntime holds each constant twice for a moment, as stored and as packed for its kernel. The
head is by far the largest and would set the peak of the process's memory. Its rows do not know of each other.
"""

from __future__ import annotations

from onnx import NodeProto, helper

from edge_awq.engine.ort.graph import Graph, attributes, rows
from edge_awq.engine.ort.rules.declined import Declined
from edge_awq.engine.ort.rules.matmul_nbits import BITS
from edge_awq.export.ops import INT4_MATMUL, INT8_MATMUL

ELEMENTWISE = ("Identity", "Add", "Div", "Tanh", "Mul")  # how logits are passed on, get a bias, or are soft-capped
LARGEST = 16 << 20  # bytes of packed weights that one kernel may take


def find(graph: Graph) -> list[tuple[NodeProto, ...]]:
    """The quantized matmul that gives an output of the graph, where its weights take more than ``LARGEST``."""
    nodes = [node for op in (INT4_MATMUL, INT8_MATMUL) for node in graph.calls(op)]
    return [(node,) for node in nodes if _gives_output(graph, node) and _nbytes(node) > LARGEST]


def rewrite(graph: Graph, match: tuple[NodeProto, ...]) -> Declined | None:
    """Cut the rows into parts of nearly the same size."""
    (node,) = match
    x, *constants = node.input
    tensors = [graph.initializer(constant) for constant in constants]
    if not all(tensors):
        return Declined("its weights are no constants")
    features, count = int(attributes(node)["N"]), -(-_nbytes(node) // LARGEST)
    bounds = [features * part // count for part in range(count + 1)]
    parts = []
    for index in range(count):
        start, stop, name = bounds[index], bounds[index + 1], f"{node.name}.{index}"
        ranges = [rows(tensor, (start, stop), f"{name}.{tensor.name.rpartition('.')[2]}") for tensor in tensors]
        if None in ranges:
            return Declined("its weights are no ranges of the weights file")
        inputs = [x, *(graph.constant(tensor) for tensor in ranges)]
        given = {**attributes(node), "N": stop - start}
        parts.append(helper.make_node(node.op_type, inputs, [name], name, domain=node.domain, **given))
    whole = helper.make_node("Concat", [part.output[0] for part in parts], node.output, node.name, axis=-1)
    graph.replace([node], [*parts, whole])
    return None


def _gives_output(graph: Graph, node: NodeProto) -> bool:
    """Whether what follows, up to an output of the graph, works element by element."""
    while node.output[0] not in graph.outputs:
        readers = graph.readers(node.output[0])
        if len(readers) != 1 or readers[0].op_type not in ELEMENTWISE:
            return False
        node = readers[0]
    return True


def _nbytes(node: NodeProto) -> int:
    given = attributes(node)
    return int(given["N"]) * int(given["K"]) * BITS[node.op_type] // 8
