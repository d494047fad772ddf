"""What SampleToken draws, in numpy: the filters of edge_awq/runner/sampling.py in float64, random numbers by Philox.

plugins/sampling/kernel.h has the meaning of every value of a setting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_awq.runner.sampling import min_p_ids, top_k_ids, top_p_ids

FINITE = 1 << 32  # tokens from here on are flagged: their logit is not finite
SMALLEST_TEMPERATURE = 2.0**-100
_WORD = 0xFFFFFFFF


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10: four random words of four words and two.

    Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = right >> 32 ^ c1 ^ k0, right & _WORD, left >> 32 ^ c3 ^ k1, left & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return [c0, c1, c2, c3]


def uniform(seed: int, step: int) -> float:
    """The fraction in [0, 1) that a step draws with; both numbers have 64 bits."""
    words = philox([step & _WORD, step >> 32 & _WORD, 0, 0], [seed & _WORD, seed >> 32 & _WORD])
    return (words[1] << 32 | words[0]) / 2**64


def filtered(logits: np.ndarray, settings: np.ndarray) -> np.ndarray:
    """Scores [size] float64 by temperature, -inf where ruled out, of logits [size] and settings [4] float32."""
    temperature, top_k, top_p, min_p = map(float, settings)
    scores = logits.astype(np.float64) / min(temperature, 1 / SMALLEST_TEMPERATURE)
    if 1 <= top_k < scores.size:
        scores = _only(scores, top_k_ids(scores, int(top_k)))
    if top_p < 1:
        scores = _only(scores, top_p_ids(scores, top_p))
    if min_p > 0:
        scores = _only(scores, min_p_ids(scores, min(min_p, 1.0)))
    return scores


def likeliest_token(logits: np.ndarray) -> int:
    """The first largest of logits [size], or the first NaN; 2^32 more where that is not finite."""
    best = int(logits.argmax())
    return best if np.isfinite(logits[best]) else best + FINITE


def draw(logits: np.ndarray, settings: np.ndarray, seed: int, step: int) -> int:
    """The token of one row of logits [size] float32."""
    likeliest = likeliest_token(logits)
    if likeliest >= FINITE or not settings[0] >= SMALLEST_TEMPERATURE:
        return likeliest
    scores = filtered(logits, settings)
    cumulative = np.cumsum(np.exp(scores - scores.max()))
    return int(np.searchsorted(cumulative, uniform(seed, step) * cumulative[-1], side="right"))


def _only(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    kept = np.full(scores.shape, -np.inf)
    kept[ids] = scores[ids]
    return kept
