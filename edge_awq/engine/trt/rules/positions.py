"""table[past_length : past_length + tokens]  ->  table[past_length + arange(tokens)]

The first is a slice whose bounds are read at run time, from device memory, which TensorRT does not do; the second is a
lookup like that of the tokens.
"""

from __future__ import annotations

import numpy as np

from edge_awq.engine.trt.draft import Draft, constant

PAST, IDS = "past_length", "input_ids"


def apply(draft: Draft) -> None:
    """Look up rows of learned positions by number."""
    for node in draft.nodes("Slice"):
        table, past = node.inputs[:2]
        if not draft.is_weight(table) or past.name != PAST:
            continue
        old = draft.options.tensorrt_major < 10
        dtype = "int32" if old else "int64"
        if old:  # [1, 2], of which the first is the low word
            zero = constant("positions.word", [0])
            past = draft.standard("Gather", "positions.past", [_flat(draft, past), zero], axis=0)
        ids = next(tensor for tensor in draft.graph.inputs if tensor.name == IDS)
        sizes = draft.standard("Shape", "positions.sizes", [ids])
        tokens = draft.standard("Gather", "positions.count", [sizes, constant("positions.second", [1])], axis=0)
        numbers = constant("positions.numbers", np.arange(draft.most_rows), dtype)
        first, axis = constant("positions.first", [0]), constant("positions.axis", [0])
        offsets = draft.standard("Slice", "positions.offsets", [numbers, first, tokens, axis])
        places = draft.standard("Add", "positions.places", [past, offsets])
        outputs = list(node.outputs)
        node.inputs.clear()
        node.outputs.clear()
        rows = draft.standard("Gather", node.name, [table, places], axis=0)
        rows.inputs[0].outputs = outputs


def _flat(draft: Draft, past: object) -> object:
    return draft.standard("Reshape", "positions.words", [past, constant("positions.flat", [-1])])
