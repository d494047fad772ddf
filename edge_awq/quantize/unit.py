"""What AWQ works on at a time: a block, or the head with the norm before it; rounded plainly or after the searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from edge_awq.model.decoder import Linear, Weights
from edge_awq.model.family import Fold
from edge_awq.quantize.int4 import IntGrid, PackedLinear, dequantize, grid_for, quantize, row_chunks
from edge_awq.quantize.search import search_ranges
from edge_awq.quantize.stats import InputObserver, InputStats

# What clipping q and k does to the scores is not seen in their own outputs, so llm-awq never clips them. Here they are
# clipped where the whole block's output gains by it: 3 to 17 % less KL divergence on two small trained models.
RISKY = ("q", "k")
DEQUANTIZED_AT_ONCE = 1 << 23  # weights, 32 MB as float32


@dataclass(frozen=True)
class Unit:
    """Float weights that are quantized together.

    Attributes:
        name: for messages and the report.
        weights: owned by the unit; folding changes them in place.
        grid: for its linears; groups of 64 where their inputs do not divide by more.
        forward: x [sequences, tokens, hidden], weights, linear -> the unit's output.
    """

    name: str
    weights: Weights
    linears: tuple[str, ...]
    folds: tuple[Fold, ...]
    grid: IntGrid
    forward: Callable[[torch.Tensor, Weights, Linear], torch.Tensor]

    def path(self, linear: str) -> str:
        """Name of a linear in messages."""
        return linear if linear == self.name else f"{self.name}.{linear}"

    def grid_of(self, linear: str) -> IntGrid:
        """The grid of one linear."""
        return grid_for(self.path(linear), self.weights[f"{linear}.weight"].shape[1], self.grid)

    def input_of(self, linear: str) -> str:
        """The first of the linears that share the input of ``linear``; statistics go by its name."""
        return next((fold.linears[0] for fold in self.folds if linear in fold.linears), linear)

    def observer(self, sampled: torch.Tensor, hessians: bool = False) -> InputObserver:
        """Watches every input once; sampled [tokens] bool says which tokens are kept."""
        watched = dict.fromkeys(map(self.input_of, self.linears))
        return InputObserver({name: self.grid_of(name).group_size for name in watched}, sampled, hessians)


@dataclass(frozen=True)
class Candidate:
    """One way to quantize a unit: gains and biases float32, packed linears, and per linear the weights clipped."""

    vectors: Weights
    packed: dict[str, PackedLinear]
    clipped: dict[str, int]

    def linear(self, name: str, x: torch.Tensor, weights: Weights) -> torch.Tensor:
        """The quantized linear as a hook; of a big head only a part is float32 at a time."""
        packed = self.packed[name]
        chunks = row_chunks(len(packed.scales), x.shape[-1], DEQUANTIZED_AT_ONCE)
        y = torch.cat([F.linear(x, dequantize(packed.rows(rows))) for rows in chunks], dim=-1)
        bias = weights.get(f"{name}.bias")
        return y if bias is None else y.add_(bias)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is stored, by name."""
        stored = dict(self.vectors)
        for name, packed in self.packed.items():
            stored |= packed.tensors(name)
        return stored


@dataclass(frozen=True)
class Trial:
    """Some inputs of a unit, [sequences, tokens, hidden], and its full-precision outputs for them."""

    inputs: torch.Tensor
    outputs: torch.Tensor

    def loss(self, unit: Unit, candidate: Candidate) -> float:
        """Squared error of each token's output relative to its square, in the mean over all tokens.

        Relative, because in big models a few tokens of huge activations would decide alone.
        """
        error = unit.forward(self.inputs, candidate.vectors, candidate.linear).sub_(self.outputs)
        square = self.outputs.square().mean(-1).clamp_(min=torch.finfo(torch.float32).tiny)
        return float((error.square_().mean(-1) / square).mean(dtype=torch.float64))


def quantize_unit(unit: Unit, stats: dict[str, InputStats] | None = None) -> Candidate:
    """Quantize the unit's weights as they stand; with statistics, over searched ranges except for RISKY linears."""
    vectors = {name: tensor.clone() for name, tensor in unit.weights.items() if tensor.ndim == 1}
    candidate = Candidate(vectors, {}, {})
    for linear in unit.linears:
        candidate = requantize(unit, candidate, linear, None if linear in RISKY else stats)
    return candidate


def requantize(unit: Unit, candidate: Candidate, linear: str, stats: dict[str, InputStats] | None) -> Candidate:
    """``candidate`` with one linear quantized anew: over its whole ranges, or with statistics over searched ones."""
    weight, grid = unit.weights[f"{linear}.weight"], unit.grid_of(linear)
    ranges = None
    if stats is not None and grid.bits == 4:  # 255 levels leave nothing to win by clipping
        ranges = search_ranges(weight, stats[unit.input_of(linear)].gram, grid)
    packed, clipped = quantize(unit.path(linear), weight, grid, ranges)
    return replace(candidate, packed=candidate.packed | {linear: packed}, clipped=candidate.clipped | {linear: clipped})


def fold_scales(weights: Weights, fold: Fold, scales: torch.Tensor) -> None:
    """Move ``scales`` [K] from the inputs of the fold's linears into its source, in place; the function stays the same.

    The source is a norm (gain [K]) or a linear (rows [K, inputs], bias [K]): its outputs are divided by the scales, and
    the input columns of the linears are multiplied.
    """
    for kind in ("weight", "bias"):
        if (tensor := weights.get(f"{fold.source}.{kind}")) is not None:
            tensor.div_(scales.view(-1, *[1] * (tensor.ndim - 1)))
    for linear in fold.linears:
        weights[f"{linear}.weight"].mul_(scales)
