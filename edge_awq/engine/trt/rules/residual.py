"""r + f(x @ W.T)  ->  matmul(x, W, activation=f, residual=r)"""

from __future__ import annotations

from edge_awq.engine.trt.draft import Draft, absorb, extras, give, has_one_reader, matmul_of


def apply(draft: Draft) -> None:
    """Give every sum of activations to the matmul that makes one of them, the newer where there are two."""
    for node in draft.nodes("Add"):
        if not all(tensor.inputs for tensor in node.inputs):
            continue  # a bias, or a sum with a constant or an input
        for index in (1, 0):
            matmul = matmul_of(node.inputs[index])
            if matmul is None or not has_one_reader(matmul.outputs[0], draft.graph):
                continue
            if "residual" not in extras(matmul):
                give(matmul, residual=node.inputs[1 - index])
                absorb(matmul, node)
                break
        else:
            draft.decline("residual", node, "neither term is what a matmul alone gives")
