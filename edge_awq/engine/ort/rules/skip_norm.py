"""s = x + d, y = RMSNormalization(s, w)  ->  y, s = SkipSimplifiedLayerNormalization(x, d, w)
s = x + d, y = LayerNormalization(s, w, b)  ->  y, s = SkipLayerNormalization(x, d, w, b)

The residual sum and the norm that reads it become one pass over the row.
"""

from __future__ import annotations

from onnx import NodeProto, helper

from edge_awq.engine.ort.graph import MICROSOFT, Graph, attributes
from edge_awq.engine.ort.rules.declined import Declined

KERNELS = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}
NO_MEAN, NO_DEVIATION = "", ""  # outputs of the kernel that nothing reads


def find(graph: Graph) -> list[tuple[NodeProto, ...]]:
    """Norms of a sum."""
    norms = [node for node in graph.nodes if node.op_type in KERNELS]
    pairs = ((norm, graph.producer(norm.input[0], "Add")) for norm in norms)
    return [(norm, add) for norm, add in pairs if add is not None]


def rewrite(graph: Graph, match: tuple[NodeProto, ...]) -> Declined | None:
    """One kernel gives the norm and, to whoever reads it, the sum."""
    norm, add = match
    if graph.producer(norm.input[0], "Add") is None:
        return Declined("another norm took the sum")
    if constants := [name for name in add.input if graph.initializer(name)]:
        return Declined(f"'{constants[0]}' is a constant, not a residual")
    if attributes(norm).get("axis", -1) != -1:
        return Declined("it normalizes more than the last axis")
    fused = helper.make_node(
        KERNELS[norm.op_type],
        [*add.input, *norm.input[1:]],
        [norm.output[0], NO_MEAN, NO_DEVIATION, add.output[0]],
        norm.name,
        domain=MICROSOFT,
        epsilon=attributes(norm).get("epsilon", 1e-5),
    )
    graph.replace([add, norm], [fused])
    return None
