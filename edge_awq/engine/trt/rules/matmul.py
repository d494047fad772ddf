"""Int4MatMul(x, q, s, z), Int8MatMul(x, q, s, z)  ->  plugins of the same names

The same equation on the same bytes: the plugins take packed weights as int8, since TensorRT has no unsigned bytes.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft
from edge_awq.engine.trt.names import DOMAIN, GROUP_SIZES, INT4_MATMUL, INT8_MATMUL, K_STEP
from edge_awq.errors import EdgeAwqError


def apply(draft: Draft) -> None:
    """Replace every quantized matmul.

    Raises:
        EdgeAwqError: no kernel computes its shape.
    """
    for node in draft.nodes(INT4_MATMUL, INT8_MATMUL):
        if node.domain == DOMAIN:
            continue
        given = {name: int(node.attrs[name]) for name in ("K", "N", "group_size")}
        check_width(node, given["K"])
        if given["group_size"] not in GROUP_SIZES:
            raise EdgeAwqError(f"{node.name}: no kernel has group size {given['group_size']}",
                               hint=f"quantize with a group size of {' or '.join(map(str, GROUP_SIZES))}")
        draft.replace(node, node.op, list(node.inputs), **given)


def check_width(node: gs.Node, width: int) -> None:
    """A matmul can be computed with inputs of ``width`` elements.

    Raises:
        EdgeAwqError: it cannot.
    """
    if width % K_STEP:
        raise EdgeAwqError(f"{node.name}: K = {width} is no multiple of {K_STEP}, so no kernel computes it",
                           hint="run this model on the target cpu")
