"""Which tensors a bundle stores, of what type and shape: known from the checkpoint's shapes alone."""

from __future__ import annotations

from collections.abc import Iterable

from edge_awq.model.decoder import Decoder
from edge_awq.model.folds import ACT_SCALE, has_act_scale
from edge_awq.model.naming import block_tensors, final_shape, final_vectors
from edge_awq.quantize.int4 import IntGrid, grid_for
from edge_awq.target import QuantSpec
from edge_awq.weights import TensorSpec

PRECISIONS = ("w4a16", "fp16")


def plan_layout(decoder: Decoder, precision: str, quant: QuantSpec, context: int) -> list[TensorSpec]:
    """Every tensor of the bundle's weights file, in reading order; vectors are float32, matrices float16 or packed.

    Args:
        precision: "w4a16" or "fp16".
        context: rows of the rotary tables and of learned positions.

    Raises:
        EdgeAwqError: a linear's inputs divide into no group size.
    """
    config, family = decoder.config, decoder.family
    bits = {"w4a16": 4, "fp16": 16}[precision]
    head_bits = quant.head_bits if precision == "w4a16" else 16
    specs = [TensorSpec("embed.weight", "F16", config.linear_shape("embed"))]
    if "positions" in family.names:
        specs.append(TensorSpec("positions.weight", "F16", (context, config.hidden_size)))
    specs += [TensorSpec(f"{name}.{part}", "F32", (context, rope.rotary_size // 2))
              for name, rope in config.ropes.items() for part in ("cos", "sin")]
    specs += [TensorSpec(name, "F32", final_shape(config, name)) for name in final_vectors(family, decoder.checkpoint)]
    for index in range(config.num_layers):
        stored = block_tensors(family, decoder.checkpoint, index)
        prefix = f"blocks.{index}"
        vectors = _vectors(decoder, stored, quantized=bits < 16)
        specs += [TensorSpec(f"{prefix}.{name}", "F32", (size,)) for name, size in vectors.items()]
        specs += _by_kind([_matrix(f"{prefix}.{name}", config.linear_shape(name),
                                    16 if decoder.checkpoint.keeps_float(stored[f"{name}.weight"]) else bits, quant)
                           for name in family.linears])
    if head_bits < 16 or not decoder.tied_head:
        specs += _matrix("head", config.linear_shape("head"), head_bits, quant)
    return specs


def _vectors(decoder: Decoder, stored: Iterable[str], quantized: bool) -> dict[str, int]:
    """Gains, biases and scales of a block with the tensors ``stored``, and their sizes: norms first, then linears."""
    config, family = decoder.config, decoder.family
    sizes = {}
    for name in stored:
        layer, kind = name.split(".")
        if layer in family.norms:
            sizes[name] = config.norm_size(layer)
        elif kind == "bias":
            sizes[name] = config.linear_shape(layer)[0]
    if quantized and has_act_scale(family, config):
        sizes[f"{ACT_SCALE}.weight"] = config.intermediate_size
    return sizes


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
