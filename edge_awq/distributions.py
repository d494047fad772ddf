"""Distributions over a vocabulary, from logits, and how far one is from another."""

from __future__ import annotations

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities of logits [tokens, V], in their own dtype; summed in float64."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True, dtype=np.float64)).astype(logits.dtype)


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p || q) of each row, nats: log probabilities [tokens, V] -> [tokens] float64."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # what has no probability in p counts nothing, whatever q gives it
        terms = np.where(p > 0, p * (log_p - log_q), 0)
    return terms.sum(1, dtype=np.float64)
