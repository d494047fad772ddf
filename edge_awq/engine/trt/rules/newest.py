"""x[:, -num_logits:]  ->  x, or x[:, -1:]

How many logits are wanted is known when an engine is built: a size that is read at run time would tie every call to the
host. Logits of all rows are for up to eight, decoded or speculated; a prompt needs those of its last token.
"""

from __future__ import annotations

from edge_awq.engine.trt.draft import Draft, constant, producer, redirect, remove

INPUT = "num_logits"
END = 2**31 - 1  # TensorRT 8.6 cuts integers to 32 bits


def apply(draft: Draft) -> None:
    """Drop the input, and the slice where nothing is cut off."""
    for node in draft.nodes("Slice"):
        first = producer(node.inputs[1], "Neg")
        if first is None or first.inputs[0].name != INPUT:
            continue
        if draft.options.last_logits:
            axis = node.inputs[3]
            node.inputs = [node.inputs[0], constant("newest.last", [-1]), constant("newest.stop", [END]), axis]
        else:
            whole, cut = node.inputs[0], node.outputs[0]
            remove(node)
            redirect(cut, whole)
    draft.graph.inputs = [tensor for tensor in draft.graph.inputs if tensor.name != INPUT]
