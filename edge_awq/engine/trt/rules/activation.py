"""f(x @ W.T + b)  ->  matmul(x, W, bias=b, activation=f), f in ReLU, GELU, GELU by tanh, SiLU

SiLU is z * sigmoid(z), two nodes.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft, absorb, extras, has_one_reader, matmul_of, remove
from edge_awq.engine.trt.names import GELU, GELU_TANH, RELU, SILU


def apply(draft: Draft) -> None:
    """Give every activation to the matmul before it."""
    for node in draft.nodes("Relu", "Gelu", "Sigmoid"):
        last = _last(node)
        matmul = matmul_of(node.inputs[0])
        if last is None:
            draft.decline("activation", node, "its sigmoid does not gate its own input")
        elif matmul is None or not _alone(draft, node, last):
            draft.decline("activation", node, "its input is not what a matmul alone gives")
        elif matmul.attrs.get("activation") or set(extras(matmul)) - {"bias"}:
            draft.decline("activation", node, f"{matmul.name} is more than a product with a bias")
        else:
            matmul.attrs["activation"] = _code(node)
            if last is not node:
                remove(node)
            absorb(matmul, last)


def _last(node: gs.Node) -> gs.Node | None:
    """The node that gives the activation's result."""
    if node.op != "Sigmoid":
        return node
    readers = list(node.outputs[0].outputs)
    own = len(readers) == 1 and readers[0].op == "Mul" and any(each is node.inputs[0] for each in readers[0].inputs)
    return readers[0] if own else None


def _alone(draft: Draft, node: gs.Node, last: gs.Node) -> bool:
    if last is node:
        return has_one_reader(node.inputs[0], draft.graph)
    return {id(reader) for reader in node.inputs[0].outputs} == {id(node), id(last)}


def _code(node: gs.Node) -> int:
    if node.op == "Gelu":
        return GELU_TANH if node.attrs.get("approximate") == "tanh" else GELU
    return {"Relu": RELU, "Sigmoid": SILU}[node.op]
