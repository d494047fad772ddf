"""The reference that a Hugging Face checkpoint is: its float weights in float32, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from edge_awq.evaluate.reference import CHUNK, Passage, to_halves
from edge_awq.evaluate.score import log_probabilities
from edge_awq.model.decoder import Decoder, embed_tokens, head_logits, run_block
from edge_awq.progress import Progress


def halves_of(decoder: Decoder, passage: Passage, progress: Progress) -> Iterator[np.ndarray]:
    """Log probabilities [foretold tokens, V] float16 of one window after the other."""
    config, tables = decoder.config, decoder.embedding()
    hidden = [embed_tokens(config, tables, torch.tensor([ids])) for ids in passage.windows.ids]
    del tables
    with progress.track(f"run {decoder.folder.name}", config.num_layers * len(hidden)) as advance:
        for index in range(config.num_layers):
            weights = decoder.block(index)
            for window, x in enumerate(hidden):
                hidden[window] = run_block(config, index, weights, x)
                advance(1)
    vectors, head = decoder.final_vectors(), decoder.head()
    for x in hidden:
        parts = x[0, passage.first : -1].split(CHUNK)
        found = (head_logits(config, part, vectors, head).numpy() for part in parts)
        yield np.concatenate([to_halves(log_probabilities(logits)) for logits in found])
