"""Which tensors a bundle stores, of what type and shape: known from the checkpoint's shapes alone."""

from __future__ import annotations

from edge_awq.model.decoder import Decoder, block_tensors
from edge_awq.quantize.int4 import IntGrid, grid_for
from edge_awq.target import QuantSpec
from edge_awq.weights import TensorSpec

PRECISIONS = ("w4a16", "fp16")


def plan_layout(decoder: Decoder, precision: str, quant: QuantSpec, context: int) -> list[TensorSpec]:
    """Every tensor of the bundle's weights file, in reading order; vectors are float32, matrices float16 or packed.

    Args:
        precision: "w4a16" or "fp16".
        context: rows of the rotary tables.

    Raises:
        EdgeAwqError: a linear's inputs divide into no group size.
    """
    config, family = decoder.config, decoder.family
    bits = {"w4a16": 4, "fp16": 16}[precision]
    head_bits = quant.head_bits if precision == "w4a16" else 16
    rope = (context, config.rope.rotary_size // 2)
    specs = [
        TensorSpec("embed.weight", "F16", config.linear_shape("embed")),
        TensorSpec("rope.cos", "F32", rope),
        TensorSpec("rope.sin", "F32", rope),
        TensorSpec("final_norm.weight", "F32", (config.hidden_size,)),
    ]
    for index in range(config.num_layers):
        stored = block_tensors(family, decoder.checkpoint, index)
        prefix = f"blocks.{index}"
        specs += [TensorSpec(f"{prefix}.{name}.weight", "F32", (config.hidden_size,)) for name in family.norms]
        biases = [name for name in family.linears if f"{name}.bias" in stored]
        specs += [TensorSpec(f"{prefix}.{name}.bias", "F32", config.linear_shape(name)[:1]) for name in biases]
        specs += _by_kind([_matrix(f"{prefix}.{name}", config.linear_shape(name),
                                   16 if decoder.checkpoint.keeps_float(stored[f"{name}.weight"]) else bits, quant)
                           for name in family.linears])
    if head_bits < 16 or not decoder.tied_head:
        specs += _matrix("head", config.linear_shape("head"), head_bits, quant)
    return specs


def _matrix(name: str, shape: tuple[int, int], bits: int, quant: QuantSpec) -> list[TensorSpec]:
    """A linear's tensors: one of float16, or packed values, scales and zero points (each row starts on a byte)."""
    rows, inputs = shape
    if bits == 16:
        return [TensorSpec(f"{name}.weight", "F16", shape)]
    groups = inputs // grid_for(name, inputs, IntGrid(bits, quant.group_size)).group_size
    return [
        TensorSpec(f"{name}.qweight", "U8", (rows, inputs * bits // 8)),
        TensorSpec(f"{name}.scales", "F16", (rows, groups)),
        TensorSpec(f"{name}.zero_points", "U8", (rows, -(-groups * bits // 8))),
    ]


def _by_kind(linears: list[list[TensorSpec]]) -> list[TensorSpec]:
    """All packed values first, then all scales, then all zero points: neighbours of one kind read as one matrix.

    What is not packed comes before them.
    """
    packed = [specs for specs in linears if len(specs) > 1]
    whole = [spec for specs in linears if len(specs) == 1 for spec in specs]
    return [*whole, *(spec for kind in zip(*packed, strict=True) for spec in kind)]
