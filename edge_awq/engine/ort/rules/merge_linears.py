"""[x @ q + a, x @ k + b, x @ v + c]  ->  split(x @ [q|k|v] + [a|b|c])

Quantized linears that read the same x (q, k and v; gate and up) become one, so that x is rounded once and a larger
matrix keeps the threads busy. Their tensors lie side by side in the weights file: the merged matrix is a range of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto, TensorProto, helper

from edge_awq.engine.ort.graph import Graph, attributes, join
from edge_awq.engine.ort.rules.declined import Declined
from edge_awq.export.ops import INT4_MATMUL, INT8_MATMUL


@dataclass(frozen=True)
class _Linear:
    """A matmul, and the Add of its bias where it has one."""

    matmul: NodeProto
    add: NodeProto | None

    @property
    def name(self) -> str:
        return self.matmul.name

    @property
    def output(self) -> str:
        return (self.add or self.matmul).output[0]

    @property
    def nodes(self) -> list[NodeProto]:
        return [self.matmul, self.add] if self.add else [self.matmul]

    @property
    def constants(self) -> list[str]:
        """Names of what it multiplies by and adds."""
        matmul = list(self.matmul.input)[1:]
        return [*matmul, next(name for name in self.add.input if name != self.matmul.output[0])] if self.add else matmul


def find(graph: Graph) -> list[tuple[NodeProto, ...]]:
    """Quantized linears of one kind that share their input, at least two."""
    groups: dict[tuple[str, str], list[NodeProto]] = {}
    for op in (INT4_MATMUL, INT8_MATMUL):
        for node in graph.calls(op):
            groups.setdefault((op.name, node.input[0]), []).append(node)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def rewrite(graph: Graph, match: tuple[NodeProto, ...]) -> Declined | None:
    """Merge in the order of the match, which is that of the forward pass."""
    linears = [_Linear(node, graph.only_reader(node.output[0], "Add")) for node in match]
    first, *others = linears
    if any(attributes(linear.matmul)["group_size"] != attributes(first.matmul)["group_size"] for linear in others):
        return Declined("the linears have different group sizes")
    if any(len(linear.constants) != len(first.constants) for linear in others):
        return Declined("some of the linears have a bias, some have none")

    name = "+".join([first.name, *(linear.name.rpartition(".")[2] for linear in others)])
    merged = []
    for names in zip(*(linear.constants for linear in linears), strict=True):
        tensors = [graph.initializer(constant) for constant in names]
        whole = join(tensors, f"{name}.{names[0].rpartition('.')[2]}") if all(tensors) else None
        if whole is None:
            return Declined(f"{', '.join(names)} do not lie side by side in the weights file")
        merged.append(whole)
    graph.replace([node for linear in linears for node in linear.nodes], _merge(graph, name, linears, merged))
    return None


def _merge(graph: Graph, name: str, linears: list[_Linear], merged: list[TensorProto]) -> list[NodeProto]:
    first, sizes = linears[0].matmul, [int(attributes(linear.matmul)["N"]) for linear in linears]
    constants = [graph.constant(tensor) for tensor in merged]
    parameters = {**attributes(first), "N": sum(sizes)}
    matmul = helper.make_node(first.op_type, [first.input[0], *constants[:3]], [name], name, domain=first.domain,
                              **parameters)
    nodes = [matmul]
    for bias in constants[3:]:
        nodes.append(helper.make_node("Add", [name, bias], [f"{name}.biased"], f"{name}.biased"))
    lengths = graph.constant(helper.make_tensor(f"{name}.sizes", TensorProto.INT64, [len(sizes)], sizes))
    parts = [linear.output for linear in linears]
    return [*nodes, helper.make_node("Split", [nodes[-1].output[0], lengths], parts, f"{name}.split", axis=-1)]
