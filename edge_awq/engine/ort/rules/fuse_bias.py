"""MatMulNBits(x) + b  ->  MatMulNBits(x, bias=b)"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

from edge_awq.engine.ort.graph import Graph, attributes
from edge_awq.engine.ort.rules.declined import Declined
from edge_awq.engine.ort.rules.matmul_nbits import KERNEL

NO_GROUP_INDEX = ""  # the kernel's fifth input, unused; the bias is the sixth


def find(graph: Graph) -> list[tuple[NodeProto, ...]]:
    """MatMulNBits nodes and the Add of a constant to what they alone give; other sums are residuals."""
    pairs = ((node, graph.only_reader(node.output[0], "Add")) for node in graph.nodes if node.op_type == KERNEL)
    return [(matmul, add) for matmul, add in pairs if add is not None and _constants(graph, add)]


def rewrite(graph: Graph, match: tuple[NodeProto, ...]) -> Declined | None:
    """Give the constant to the kernel."""
    matmul, add = match
    (bias,), features = _constants(graph, add), int(attributes(matmul)["N"])
    if list(bias.dims) != [features]:
        return Declined(f"'{bias.name}' has shape {list(bias.dims)}, [{features}] is expected")
    inputs = [*matmul.input, NO_GROUP_INDEX, bias.name]
    fused = helper.make_node(KERNEL, inputs, add.output, matmul.name, domain=matmul.domain, **attributes(matmul))
    graph.replace([matmul, add], [fused])
    return None


def _constants(graph: Graph, add: NodeProto) -> list[TensorProto]:
    return [tensor for tensor in map(graph.initializer, add.input) if tensor is not None]
