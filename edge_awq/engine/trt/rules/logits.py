"""logits = Identity(y)  ->  y itself, float32 where a matmul makes it; tokens = GreedyToken(logits) if asked for

Rounded to float16, large logits would be up to 2 ** -11 of their size off.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft, absorb, has_one_reader, matmul_of, producer
from edge_awq.engine.trt.names import GREEDY

OUTPUT, TOKENS = "logits", "tokens"


def apply(draft: Draft) -> None:
    """Let the head write float32, and its last node the output."""
    output = next(tensor for tensor in draft.graph.outputs if tensor.name == OUTPUT)
    identity = producer(output, "Identity")
    if identity is not None and has_one_reader(identity.inputs[0], draft.graph):
        absorb(identity.inputs[0].inputs[0], identity)
    head = _head(output)
    if head is None:
        draft.decline("logits", output.inputs[0], "no matmul gives the logits")
    else:
        head.attrs["fp32_output"] = 1
    rows = 1 if draft.options.last_logits else "tokens"
    output.shape = (1, rows, output.shape[-1])
    if draft.options.argmax:
        old = draft.options.tensorrt_major < 10
        dtype, shape = (np.int32, (1, rows, 2)) if old else (np.int64, (1, rows))
        tokens = gs.Variable(TOKENS, np.dtype(dtype), shape)
        draft.plugin(GREEDY, TOKENS, [output], [tokens])
        draft.graph.outputs.append(tokens)


def _head(tensor: gs.Tensor) -> gs.Node | None:
    """The matmul from which only elementwise nodes lead to ``tensor``."""
    while (matmul := matmul_of(tensor)) is None:
        node = producer(tensor, "Mul", "Tanh", "Div")
        if node is None:
            return None
        tensor = node.inputs[0]
    return matmul
