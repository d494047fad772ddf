"""(x @ W.T) + b  ->  matmul(x, W, bias=b), b rounded to float16"""

from __future__ import annotations

from edge_awq.engine.trt.draft import Draft, absorb, give, has_one_reader, matmul_of


def apply(draft: Draft) -> None:
    """Give every stored vector that is added to a matmul to that matmul."""
    for node in draft.nodes("Add"):
        stored = [tensor for tensor in node.inputs if draft.is_weight(tensor)]
        if not stored:
            continue
        matmul = next((found for found in map(matmul_of, node.inputs) if found is not None), None)
        if matmul is None or not has_one_reader(matmul.outputs[0], draft.graph):
            draft.decline("bias", node, f"'{stored[0].name}' is not added to what a matmul alone gives")
        elif tuple(stored[0].shape) != (matmul.attrs["N"],):
            draft.decline("bias", node, f"'{stored[0].name}' has shape {list(stored[0].shape)}, not "
                                        f"[{matmul.attrs['N']}]")
        else:
            give(matmul, bias=stored[0])
            absorb(matmul, node)
