"""Random weights of a decoder, and the names under which a checkpoint stores them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_awq.model.config import DecoderConfig
from edge_awq.model.decoder import Weights
from edge_awq.model.family import Family

POSITION_SCALE = 0.02  # of learned positions
TO_RESIDUAL = ("o", "down")  # the linears whose outputs are added to the residual stream


@dataclass(frozen=True)
class RandomWeights:
    """Matrices N(0, 1/K), so that activations keep their size; draws follow one another in the generator.

    Attributes:
        gain_spread: standard deviation of the norms' gains around 1.
        biases: canonical linears and norms that have a bias, N(0, 0.1^2).
        dtype: type of the tensors; only one at a time is ever held in float32.
    """

    family: Family
    config: DecoderConfig
    generator: torch.Generator
    gain_spread: float = 0.0
    biases: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32

    def matrix(self, name: str, gain: float = 1.0) -> torch.Tensor:
        """The weight of linear ``name``, [N, K]."""
        rows, columns = self.config.linear_shape(name)
        return self._normal(rows, columns, scale=gain * columns**-0.5)

    def gains(self, name: str = "final_norm") -> torch.Tensor:
        """The weight of a norm, as it is stored."""
        offset = 1 - self.family.norm_offset
        return offset + self._normal(self.config.norm_size(name), scale=self.gain_spread)

    def norm(self, name: str) -> Weights:
        """The tensors of a norm by canonical names."""
        weights = {f"{name}.weight": self.gains(name)}
        if name in self.biases:
            weights[f"{name}.bias"] = self._normal(self.config.norm_size(name), scale=0.1)
        return weights

    def outer(self) -> Weights:
        """What is before and behind the blocks, except a head of its own."""
        weights = {"embed.weight": self.matrix("embed")}
        if "positions" in self.family.names:
            rows = self.config.max_positions + self.config.position_offset
            weights["positions.weight"] = self._normal(rows, self.config.hidden_size, scale=POSITION_SCALE)
        return weights | self.norm("final_norm")

    def block(self) -> Weights:
        """One block by canonical names; what it adds to the residual stream is kept from growing with depth."""
        gain = (2 * self.config.num_layers) ** -0.5
        weights: Weights = {}
        for name in self.family.norms:
            weights |= self.norm(name)
        for name in self.family.linears:
            weights[f"{name}.weight"] = self.matrix(name, gain if name in TO_RESIDUAL else 1.0)
            if name in self.biases:
                weights[f"{name}.bias"] = self._normal(self.config.linear_shape(name)[0], scale=0.1)
        return weights

    def stored_block(self, index: int) -> Weights:
        """One block as the checkpoint names it. Rows are drawn alike, so fused linears are stacked in any order."""
        parts: dict[str, list[torch.Tensor]] = {}
        for name, tensor in self.block().items():
            parts.setdefault(stored_name(self.family, name, index), []).append(tensor)
        return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parts.items()}

    def _normal(self, *shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).mul_(scale).to(self.dtype)


def stored_name(family: Family, canonical: str, block: int | None = None) -> str:
    """Name in the checkpoint of a canonical tensor, such as ``q.weight``, of a block or outside the blocks."""
    layer, kind = canonical.split(".")
    if block is None:
        return f"{family.names[layer]}.{kind}"
    return f"{family.block['prefix'].format(i=block)}.{family.block[layer]}.{kind}"
