"""RMSNormalization(x, w)  ->  RmsNorm(x, w)
LayerNormalization(x, w[, b])  ->  LayerNorm(x, w[, b])
"""

from __future__ import annotations

from edge_awq.engine.trt.draft import Draft
from edge_awq.engine.trt.names import LAYER_NORM, NORM_STEP, RMS_NORM
from edge_awq.errors import EdgeAwqError

PLUGINS = {"RMSNormalization": RMS_NORM, "LayerNormalization": LAYER_NORM}


def apply(draft: Draft) -> None:
    """Replace every norm.

    Raises:
        EdgeAwqError: no kernel computes its size.
    """
    for node in draft.nodes(*PLUGINS):
        (size,) = node.inputs[1].shape
        if size % NORM_STEP:
            raise EdgeAwqError(f"{node.name}: no kernel normalizes {size} elements, only multiples of {NORM_STEP}",
                               hint="run this model on the target cpu")
        draft.replace(node, PLUGINS[node.op], list(node.inputs), epsilon=node.attrs["epsilon"],
                      has_bias=int(len(node.inputs) > 2))
