"""f(x @ W.T) * s, s [N]  ->  matmul(x, W, activation=f, act_scale=s)"""

from __future__ import annotations

from edge_awq.engine.trt.draft import Draft, absorb, extras, give, has_one_reader, matmul_of, outputs


def apply(draft: Draft) -> None:
    """Give every stored vector by which a matmul's result is multiplied to that matmul."""
    for node in draft.nodes("Mul"):
        stored = [tensor for tensor in node.inputs if draft.is_weight(tensor)]
        if not stored:
            continue
        matmul = next((found for found in map(matmul_of, node.inputs) if found is not None), None)
        if matmul is None or not has_one_reader(matmul.outputs[0], draft.graph):
            draft.decline("act_scale", node, f"'{stored[0].name}' does not scale what a matmul alone gives")
        elif {"act_scale", "residual"} & set(extras(matmul)):
            draft.decline("act_scale", node, f"{matmul.name} has a scale or a residual already")
        elif stored[0].shape != (size := (outputs(matmul),)):
            draft.decline("act_scale", node, f"'{stored[0].name}' has shape {list(stored[0].shape)}, not {list(size)}")
        else:
            give(matmul, act_scale=stored[0])
            absorb(matmul, node)
