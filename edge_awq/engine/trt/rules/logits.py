"""logits = Identity(y)  ->  y itself, float32 where a matmul makes it; and, if asked for,

    tokens = SampleToken(logits, sampling, seed, past_length)

Rounded to float16, large logits would be up to 2 ** -11 of their size off.

The inputs sampling float32 [4], as SAMPLE_SETTINGS has them, and seed int64 [1] say how tokens are chosen: zeros are
greedy, and the same seed draws the same token at the same place. So one engine serves all settings.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft, absorb, has_one_reader, matmul_of, producer
from edge_awq.engine.trt.names import LOGITS, PAST_LENGTH, SAMPLE, SAMPLE_SETTINGS, SEED, SETTINGS, TOKENS


def apply(draft: Draft) -> None:
    """Let the head write float32, and its last node the output."""
    output = next(tensor for tensor in draft.graph.outputs if tensor.name == LOGITS)
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
    if draft.options.choose:
        _choose(draft, output)


def _choose(draft: Draft, logits: gs.Tensor) -> None:
    old, rows = draft.options.tensorrt_major < 10, logits.shape[1]
    dtype, shape = (np.int32, (1, rows, 2)) if old else (np.int64, (1, rows))
    tokens = gs.Variable(TOKENS, np.dtype(dtype), shape)
    settings = gs.Variable(SETTINGS, np.dtype(np.float32), (len(SAMPLE_SETTINGS),))
    seed = gs.Variable(SEED, np.dtype(np.int64), (1,))
    step = next(tensor for tensor in draft.graph.inputs if tensor.name == PAST_LENGTH)
    draft.plugin(SAMPLE, TOKENS, [logits, settings, seed, step], [tokens])
    draft.graph.inputs += [settings, seed]
    draft.graph.outputs.append(tokens)


def _head(tensor: gs.Tensor) -> gs.Node | None:
    """The matmul from which only elementwise nodes lead to ``tensor``."""
    while (matmul := matmul_of(tensor)) is None:
        node = producer(tensor, "Mul", "Tanh", "Div")
        if node is None:
            return None
        tensor = node.inputs[0]
    return matmul
