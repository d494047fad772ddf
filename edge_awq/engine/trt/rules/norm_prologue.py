"""matmul(norm(x), W)  ->  matmul(x, W, norm)

Every block of such a kernel normalizes all rows of x for itself, which pays for a few rows only. Where several matmuls
read one norm (attention and MLP side by side), each computes it, and its launch is saved.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft, extras, give
from edge_awq.engine.trt.names import MATMUL_WEIGHTS, NORMS, normed_rows


def apply(draft: Draft) -> None:
    """Put norms in front of the matmuls that alone read them."""
    for node in draft.nodes(*NORMS):
        if reason := _why_not(draft, node):
            draft.decline("norm_prologue", node, reason)
            continue
        x, *weights = node.inputs
        normed = node.outputs[0]
        for matmul in list(normed.outputs):
            matmul.inputs[0] = x
            give(matmul, **dict(zip(("norm_weight", "norm_bias"), weights, strict=False)))
            matmul.attrs |= {"norm": NORMS[node.op], "norm_epsilon": node.attrs["epsilon"]}


def _why_not(draft: Draft, node: gs.Node) -> str:
    (size,) = node.inputs[1].shape
    for reader in node.outputs[0].outputs:
        if reader.op not in MATMUL_WEIGHTS or any(tensor is node.outputs[0] for tensor in reader.inputs[1:]):
            return f"{reader.name} reads it, which is no matmul"
        if "norm_weight" in extras(reader):
            return f"{reader.name} has a norm already"
    if draft.most_rows > normed_rows(size):
        return f"{draft.most_rows} rows of {size} elements are too many in front of a matmul, {normed_rows(size)} fit"
    return ""
