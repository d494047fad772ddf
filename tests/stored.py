"""Weights files for tests, and the decoder they stand for.

Quantizing and packing are written here a second time, in plain numpy and from the format's description, so that they
are an oracle for edge_awq.quantize and not a copy of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edge_awq.model.decoder import Decoder, Weights
from edge_awq.model.folds import has_act_scale
from edge_awq.model.rope import rope_tables
from edge_awq.weights import StoredTensor, TensorSpec, WeightsWriter

DTYPE_NAMES = {"float32": "F32", "float16": "F16", "uint8": "U8"}


@dataclass(frozen=True)
class Quantized:
    """q [N, K] and zero [N, K / g] uint8, not packed; scale [N, K / g] float16."""

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    @property
    def value(self) -> np.ndarray:
        """The weight that is meant, (q - zero) * scale, [N, K] float64: exact, as 8 times 11 bits fit 53."""
        size = self.q.shape[1] // self.scale.shape[1]
        zero, scale = (np.repeat(part.astype(np.float64), size, axis=1) for part in (self.zero, self.scale))
        return (self.q - zero) * scale

    def tensors(self, name: str, bits: int) -> dict[str, np.ndarray]:
        """As the weights file stores them."""
        pack = pack_nibbles if bits == 4 else np.asarray
        return {
            f"{name}.qweight": pack(self.q),
            f"{name}.scales": self.scale,
            f"{name}.zero_points": pack(self.zero),
        }


def quantize(weight: np.ndarray, group_size: int, bits: int = 4, symmetric: bool = False) -> Quantized:
    """Round to nearest: each group's range, widened to hold 0, is spread over 2**bits levels.

    ``symmetric``: the range is widened to [-x, x] and the zero point is the middle.
    """
    rows, width = weight.shape
    groups = weight.astype(np.float64).reshape(rows, width // group_size, group_size)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    top = 2**bits - 1
    scale = ((high - low) / top).astype(np.float16)
    step = np.where(scale == 0, 1, scale).astype(np.float64)
    zero = np.full(scale.shape, 2.0 ** (bits - 1)) if symmetric else np.clip(np.rint(-low / step), 0, top)
    q = np.clip(np.rint(groups / step[..., None]) + zero[..., None], 0, top)
    return Quantized(q.reshape(rows, width).astype(np.uint8), scale, zero.astype(np.uint8))


def pack_nibbles(values: np.ndarray) -> np.ndarray:
    """[.., n] of 0..15 -> [.., ceil(n / 2)] bytes, the first of two in the low nibble, an odd end padded with 0."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
    return (padded[..., 0::2] + 16 * padded[..., 1::2]).astype(np.uint8)


def write_weights(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, StoredTensor]:
    """Write a weights file; returns its layout."""
    specs = [TensorSpec(name, DTYPE_NAMES[array.dtype.name], array.shape) for name, array in tensors.items()]
    with WeightsWriter(path, specs) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
        return writer.layout


@dataclass(frozen=True)
class StoredDecoder(Decoder):
    """A decoder whose weights are the values that a weights file stores, so it computes what the file means."""

    values: dict[str, torch.Tensor]

    def embed(self) -> torch.Tensor:
        return self.values["embed.weight"]

    def positions(self) -> torch.Tensor:
        return self.values["positions.weight"]

    def final_vectors(self) -> Weights:
        return {name: value for name, value in self.values.items() if name.startswith(("final_norm.", "head.b"))}

    def head(self) -> torch.Tensor:
        return self.values["head.weight"]

    def block(self, index: int) -> Weights:
        prefix = f"blocks.{index}."
        return {name[len(prefix) :]: value for name, value in self.values.items() if name.startswith(prefix)}


def store(decoder: Decoder, path: Path, bits: int = 4, head_bits: int = 4, group_size: int = 64,
          symmetric: bool = False) -> StoredDecoder:
    """Write the weights file of ``decoder`` (linears of 4 or 16 bits); returns the decoder that it means."""
    tensors: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for name, source in _float_tensors(decoder, bits).items():
        layer = name.rpartition(".")[0]
        width = {"embed": 16, "positions": 16, "head": head_bits}.get(layer, bits)
        if source.ndim == 1:
            tensors[name] = values[name] = source
        elif width == 16:
            tensors[name] = values[name] = source.astype(np.float16)
        else:
            quantized = quantize(source, group_size, width, symmetric)
            tensors.update(quantized.tensors(layer, width))
            values[name] = quantized.value
    if decoder.tied_head:
        tensors.pop("head.weight", None)  # the embedding serves
    for name, rope in decoder.config.ropes.items():
        tensors[f"{name}.cos"], tensors[f"{name}.sin"] = rope_tables(rope, decoder.config.max_positions)
    write_weights(path, tensors)
    meant = {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}
    return StoredDecoder(decoder.folder, decoder.family, decoder.config, decoder.checkpoint, meant)


def _float_tensors(decoder: Decoder, bits: int) -> dict[str, np.ndarray]:
    tensors = {**decoder.embedding(), **decoder.final_vectors(), "head.weight": decoder.head()}
    for index in range(decoder.config.num_layers):
        tensors.update({f"blocks.{index}.{name}": tensor for name, tensor in _block(decoder, index, bits).items()})
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _block(decoder: Decoder, index: int, bits: int) -> Weights:
    """A block as it is before it is quantized; scales of a plain MLP are random, so that leaving them out shows."""
    block = decoder.block(index)
    if bits < 16 and has_act_scale(decoder.family, decoder.config):
        generator = torch.Generator().manual_seed(index)
        block["act_scale.weight"] = torch.rand(decoder.config.intermediate_size, generator=generator) + 0.5
    return block
