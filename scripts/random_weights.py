"""Random weights of a decoder, and the names under which a checkpoint stores them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_awq.model.config import DecoderConfig
from edge_awq.model.decoder import Weights
from edge_awq.model.family import Family

TO_RESIDUAL = ("o", "down")  # the linears whose outputs are added to the residual stream


@dataclass(frozen=True)
class RandomWeights:
    """Matrices N(0, 1/K), so that activations keep their size; draws follow one another in the generator.

    Attributes:
        gain_spread: standard deviation of the norms' gains around 1.
        biases: canonical linears that have a bias, N(0, 0.1^2).
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

    def gains(self) -> torch.Tensor:
        """The weight of a norm, [hidden]."""
        return 1 + self._normal(self.config.hidden_size, scale=self.gain_spread)

    def block(self) -> Weights:
        """One block by canonical names; what it adds to the residual stream is kept from growing with depth."""
        gain = (2 * self.config.num_layers) ** -0.5
        weights = {f"{name}.weight": self.gains() for name in self.family.norms}
        for name in self.family.linears:
            weights[f"{name}.weight"] = self.matrix(name, gain if name in TO_RESIDUAL else 1.0)
            if name in self.biases:
                weights[f"{name}.bias"] = self._normal(self.config.linear_shape(name)[0], scale=0.1)
        return weights

    def _normal(self, *shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).mul_(scale).to(self.dtype)


def stored_name(family: Family, canonical: str, block: int | None = None) -> str:
    """Name in the checkpoint of a canonical tensor, such as ``q.weight``, of a block or outside the blocks."""
    layer, kind = canonical.split(".")
    if block is None:
        return f"{family.names[layer]}.{kind}"
    return f"{family.block['prefix'].format(i=block)}.{family.block[layer]}.{kind}"
