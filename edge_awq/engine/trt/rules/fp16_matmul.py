"""x @ float(W).T, W float16 [N, K]  ->  Fp16MatMul(x, W)"""

from __future__ import annotations

from edge_awq.engine.trt.draft import Draft, producer
from edge_awq.engine.trt.names import FP16_MATMUL
from edge_awq.engine.trt.rules.matmul import check_width


def apply(draft: Draft) -> None:
    """Replace matmuls by a stored matrix; others there are none, the attention being one op.

    Raises:
        EdgeAwqError: no kernel computes its shape.
    """
    for node in draft.nodes("MatMul"):
        transpose = producer(node.inputs[1], "Transpose")
        cast = producer(transpose.inputs[0], "Cast") if transpose is not None else None
        if cast is None or not draft.is_weight(cast.inputs[0]):
            draft.decline("fp16_matmul", node, f"'{node.inputs[1].name}' is no stored matrix, transposed")
            continue
        weight = cast.inputs[0]
        features, width = weight.shape
        check_width(node, width)
        draft.replace(node, FP16_MATMUL, [node.inputs[0], weight], K=width, N=features)
