"""One linear layer with correlated activations and outlier channels, and its output error in float64."""

from __future__ import annotations

import torch

from edge_awq.quantize.int4 import IntGrid

GRID = IntGrid(4, 128)
OUTLIERS = (3, 200)  # one in each group of 128: AWQ can protect one channel per group (its appendix C)


def layer(seed: int = 0, rows: int = 256, width: int = 256, tokens: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [rows, width] and correlated activations [tokens, width]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) * width**-0.5
    mixing = torch.randn(width, width, generator=generator) * width**-0.5 + torch.eye(width)
    return weight, torch.randn(tokens, width, generator=generator) @ mixing


def output_error(found: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> float:
    return float((x.double() @ (found.double() - weight.double()).T).square().mean())


def injected(weight: torch.Tensor, x: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same outputs from outlier activations and weights that make up for them."""
    weight, x = weight.clone(), x.clone()
    for channel in OUTLIERS:
        weight[:, channel] /= factor
        x[:, channel] *= factor
    return weight, x
