"""table[past_length : past_length + tokens]  ->  table[past_length + arange(tokens)]

The first is a slice whose bounds are read at run time, from device memory, which TensorRT does not do; the second is a
lookup like that of the tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from edge_awq.engine.trt.draft import Draft, constant, redirect, remove

PAST, IDS = "past_length", "input_ids"


def apply(draft: Draft) -> None:
    """Look up rows of learned positions by number."""
    for node in draft.nodes("Slice"):
        table, past = node.inputs[:2]
        if not draft.is_weight(table) or past.name != PAST:
            continue
        rows = draft.standard("Gather", f"{node.name}.found", [table, _places(draft, past)], axis=0)
        sliced = node.outputs[0]
        remove(node)
        redirect(sliced, rows)


def _places(draft: Draft, past: gs.Tensor) -> gs.Tensor:
    """past_length + arange(tokens), [tokens]."""
    old = draft.options.tensorrt_major < 10
    if old:  # [1, 2], of which the first is the low word
        words = draft.standard("Reshape", "positions.words", [past, constant("positions.flat", [-1])])
        past = draft.standard("Gather", "positions.past", [words, constant("positions.low", [0])], axis=0)
    ids = next(tensor for tensor in draft.graph.inputs if tensor.name == IDS)
    sizes = draft.standard("Shape", "positions.sizes", [ids])
    tokens = draft.standard("Gather", "positions.count", [sizes, constant("positions.second", [1])], axis=0)
    numbers = constant("positions.numbers", np.arange(draft.most_rows), "int32" if old else "int64")
    first, axis = constant("positions.first", [0]), constant("positions.axis", [0])
    offsets = draft.standard("Slice", "positions.offsets", [numbers, first, tokens, axis])
    return draft.standard("Add", "positions.places", [past, offsets])
