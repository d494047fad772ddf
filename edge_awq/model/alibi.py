"""ALiBi: attention with linear biases instead of positions (arXiv 2108.12409)."""

from __future__ import annotations

import math

import numpy as np


def alibi_slopes(num_heads: int, max_bias: float) -> np.ndarray:
    """Slope of each head, [num_heads] float32: 2 ** -(max_bias * i / n) for head i = 1..n, n heads in all.

    Where n is no power of two, the next power's slopes are taken: every second one first, then those between.
    """
    count = 2 ** math.ceil(math.log2(num_heads))
    exponents = np.arange(1, count + 1, dtype=np.float32) * np.float32(max_bias / count)
    slopes = np.float32(1) / np.exp2(exponents)
    if count != num_heads:
        slopes = np.concatenate([slopes[1::2], slopes[0::2]])[:num_heads]
    return slopes
