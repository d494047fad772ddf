"""f(x @ G.T) * (x @ U.T)  ->  matmul(x, [G; U], activation=f, gated)"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft, absorb, extras, has_one_reader, matmul_of, remove
from edge_awq.engine.trt.rules.qkv import merged, why_not_alike


def apply(draft: Draft) -> None:
    """Make one matmul of every gate and what it gates."""
    for node in draft.nodes("Mul"):
        pair = [matmul_of(tensor) for tensor in node.inputs]
        if any(matmul is None for matmul in pair):
            continue
        pair.sort(key=lambda matmul: -matmul.attrs.get("activation", 0))
        if reason := _why_not(draft, pair):
            draft.decline("gate", node, reason)
            continue
        matmul = merged(draft, pair, gated=1, activation=pair[0].attrs["activation"])
        for old in pair:
            remove(old)
        absorb(matmul, node)


def _why_not(draft: Draft, pair: list[gs.Node]) -> str:
    gate, up = pair
    if not gate.attrs.get("activation") or up.attrs.get("activation"):
        return "not exactly one factor has an activation"
    if not all(has_one_reader(matmul.outputs[0], draft.graph) for matmul in pair):
        return "a factor has other readers"
    if {*extras(gate), *extras(up)} - {"bias"}:
        return "a factor is more than a product with a bias"
    if gate.attrs["N"] != up.attrs["N"]:
        return f"the factors have {gate.attrs['N']} and {up.attrs['N']} features"
    return why_not_alike(pair)
