"""Bytes: of the weights file, of what one token reads, of keys and values. The bundle's own format, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_awq.bundle import Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.plan.counts import FULL, HALF, Counts
from edge_awq.runner.metrics import weight_bytes_per_token
from edge_awq.target import QuantSpec
from edge_awq.weights import read_layout

SCALED_BITS = 8  # a cached key or value of so few bits has a float32 scale


@dataclass(frozen=True)
class Sizes:
    """What a plan needs to know about a model in one precision.

    Attributes:
        weight_bytes: of the weights file.
        token_bytes: stored weights that one decoded token reads; as ``metrics.weight_bytes_per_token`` defines it.
        token_weights: how many weights those are.
        kv_elements: per layer, elements of the keys and values of one token.
        kv_vectors: per layer, how many keys and values they are: one of each for every KV head.
        windows: per layer, how many of the newest tokens are read; None: all.
        width: elements that one token of a prompt has in flight: hidden states and the outputs of a block's matrices.
    """

    weight_bytes: int
    token_bytes: int
    token_weights: int
    kv_elements: int
    kv_vectors: int
    windows: tuple[int | None, ...]
    width: int
    vocab_size: int
    max_positions: int

    def cache_bytes(self, context: int, kv_bits: int) -> int:
        """The KV cache of ``context`` tokens; a layer with a window has room for all of them too."""
        return len(self.windows) * context * self._layer_bytes(kv_bits)

    def cache_read_bytes(self, context: int, kv_bits: int) -> int:
        """What one token reads of the cache after ``context`` tokens."""
        return sum(min(context, window or context) for window in self.windows) * self._layer_bytes(kv_bits)

    def _layer_bytes(self, kv_bits: int) -> int:
        """Keys, values and their scales of one token in one layer."""
        return self.kv_elements * kv_bits // 8 + (self.kv_vectors * FULL if kv_bits == SCALED_BITS else 0)


def sizes_of(counts: Counts, precision: str, quant: QuantSpec, context: int) -> Sizes:
    """Sizes of the bundle that a build would write.

    Args:
        precision: "w4a16" or "fp16".
        context: rows of the tables of positions.

    Raises:
        EdgeAwqError: a matrix divides into no group size.
    """
    bits, head_bits = (4, quant.head_bits) if precision == "w4a16" else (16, 16)
    block = sum(_matrix_bytes(name, shape, bits, quant.group_size) for name, shape in counts.linears.items())
    block += counts.norm_size * FULL
    head_shape = (counts.vocab_size, counts.hidden_size)
    row = counts.hidden_size * HALF
    own_head = head_bits < 16 or not counts.tied_head
    head = _matrix_bytes("head", head_shape, head_bits, quant.group_size)
    shared = counts.num_layers * block + counts.hidden_size * FULL
    return Sizes(
        weight_bytes=shared + counts.vocab_size * row + (head if own_head else 0) + context * counts.position_bytes,
        token_bytes=shared + head + (row if own_head else 0),
        token_weights=counts.linear_weights + counts.head_weights,
        kv_elements=2 * counts.kv_size,
        kv_vectors=2 * counts.num_kv_heads,
        windows=counts.windows,
        width=3 * counts.hidden_size + sum(rows for rows, _ in counts.linears.values()),
        vocab_size=counts.vocab_size,
        max_positions=counts.max_positions,
    )


def sizes_of_bundle(bundle: Bundle) -> Sizes:
    """Sizes of a bundle, exactly, from the header of its weights file and from its manifest."""
    config, layout = bundle.check_config(), read_layout(bundle.weights)
    matrices = [tensor for name, tensor in layout.items()
                if name.startswith("blocks.") and name.endswith((".weight", ".qweight")) and len(tensor.shape) == 2]
    in_blocks = sum(math.prod(tensor.shape) * (2 if tensor.dtype == "U8" else 1) for tensor in matrices)
    rows = sum(tensor.shape[0] for tensor in matrices if tensor.name.startswith("blocks.0."))
    return Sizes(
        weight_bytes=sum(tensor.nbytes for tensor in layout.values()),
        token_bytes=weight_bytes_per_token(layout),
        token_weights=in_blocks + config["vocab_size"] * config["hidden_size"],
        kv_elements=2 * config["num_kv_heads"] * config["head_size"],
        kv_vectors=2 * config["num_kv_heads"],
        windows=tuple(config["windows"]),
        width=3 * config["hidden_size"] + rows,
        vocab_size=config["vocab_size"],
        max_positions=config["max_positions"],
    )


def _matrix_bytes(name: str, shape: tuple[int, int], bits: int, group_size: int) -> int:
    """Bytes of a stored matrix: float16, or packed values with a scale and a zero point for every group."""
    rows, inputs = shape
    if bits == 16:
        return rows * inputs * HALF
    group = next((size for size in (group_size, 64) if inputs % size == 0), None)
    if group is None:
        raise EdgeAwqError(f"{name}: K = {inputs} inputs do not divide into groups of 64",
                           hint="plan and build with --precision fp16, which does not quantize")
    groups = inputs // group
    return rows * (inputs * bits // 8 + groups * HALF + -(-groups * bits // 8))
