"""What a graph is told about the tokens of one run, by input name.

The canonical graph asks for ids and the length of the cache, kernels for rows of the embedding and for counts; a
lowered graph has whichever inputs its nodes read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from edge_awq.engine.ort.embedding import Embedding

EMBEDDED = "embedded"  # float32 [1, tokens, hidden_size]
LAST_POSITION, TOTAL_LENGTH = "last_position", "total_length"  # int32 [1]: row of the newest token, rows then in use


def token_inputs(
    wanted: Collection[str], ids: Sequence[int], past: int, num_logits: int, embedding: Embedding
) -> dict[str, np.ndarray]:
    """Those of the inputs that are ``wanted``, for ``ids`` after ``past`` cached tokens."""
    total = past + len(ids)
    inputs = {
        "input_ids": np.array([ids], np.int64),
        "past_length": np.array([past], np.int64),
        "num_logits": np.array([num_logits], np.int64),
        LAST_POSITION: np.array([total - 1], np.int32),
        TOTAL_LENGTH: np.array([total], np.int32),
    }
    if EMBEDDED in wanted:
        inputs[EMBEDDED] = embedding.rows(ids)
    return {name: value for name, value in inputs.items() if name in wanted}
