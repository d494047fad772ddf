"""Feedback between the rows of an attention head: what rounding does to one row of q, k or v, other rows make up for.

Outputs of q, k and v act together: a query meets all elements of a key, and o mixes all elements of a value. So an
error E [d, K] of a head costs about trace(M E H E^T), with H = mean x x^T of the inputs and M [d, d] = mean g g^T of
the gradients at the head's outputs (the Kronecker-factored curvature of arXiv 1503.05671, here of the block's own
output). With M = A A^T and H = L L^T that is |A^T E L|^2: once the rows before it are rounded, a row is rounded by GPTQ
as if its weights were off by A_r'r / A_rr of their errors. Every row has its own scales, so nothing else changes.
"""

from __future__ import annotations

import torch

from edge_awq.model.decoder import Weights, plain_linear
from edge_awq.quantize.gptq import Factor, factorize, round_to
from edge_awq.quantize.int4 import IntGrid, scales_and_zeros
from edge_awq.quantize.unit import Trial, Unit

IN_HEADS = ("q", "k", "v")
DAMPING = 0.03  # of M, which fewer tokens tell of than of H


def head_couplings(unit: Unit, trial: Trial, head_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """M of every head, [heads, d, d] by linear: from the gradients of random sums over the unit's relative output."""
    found: dict[str, torch.Tensor] = {}
    for x, expected in zip(trial.inputs.split(1), trial.outputs.split(1), strict=True):
        seen: dict[str, torch.Tensor] = {}

        def linear(name: str, x: torch.Tensor, weights: Weights, seen: dict[str, torch.Tensor] = seen) -> torch.Tensor:
            y = plain_linear(name, x, weights)
            if name in IN_HEADS:
                seen[name] = y.requires_grad_()
            return y

        size = expected.square().mean(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny).sqrt_()
        probe = torch.randn(expected.shape, generator=generator) / size
        with torch.enable_grad():
            gradients = torch.autograd.grad(unit.forward(x, unit.weights, linear), list(seen.values()), probe)
        for name, gradient in zip(seen, gradients, strict=True):
            heads = gradient.flatten(0, -2).unflatten(1, (-1, head_size)).transpose(0, 1)  # [heads, tokens, d]
            square = heads.transpose(1, 2) @ heads
            found[name] = found[name].add_(square) if name in found else square
    return found


def round_heads(
    weight: torch.Tensor,
    ranges: tuple[torch.Tensor, torch.Tensor],
    coupling: torch.Tensor,
    factors: list[Factor],
    grid: IntGrid,
) -> torch.Tensor:
    """Integers uint8 [N, K] for ``weight`` [N, K] over ranges [N, K/g]; coupling [heads, d, d], one factor per span.

    One row of every head at a time, those first that matter most.
    """
    heads, size = coupling.shape[:2]
    row_factors = [factorize(matrix, DAMPING) for matrix in coupling]
    lower = torch.stack([factor.lower for factor in row_factors])
    first_rows = size * torch.arange(heads)
    order = torch.stack([factor.channels for factor in row_factors]) + first_rows[:, None]  # the last is rounded first
    scale, zero = scales_and_zeros(*ranges, grid)
    errors = torch.zeros(heads, size, weight.shape[1])
    integers = torch.empty(weight.shape, dtype=torch.uint8)
    for i in reversed(range(size)):
        rows = order[:, i]
        share = lower[:, i + 1 :, i] / lower[:, i, i, None]
        wanted = weight[rows] - (share[:, None] @ errors[:, i + 1 :])[:, 0]
        chosen = round_to(wanted, (scale[rows], zero[rows]), factors, grid)
        groups = chosen.float().unflatten(1, (-1, grid.group_size)) - zero[rows, :, None]
        errors[:, i] = groups.mul_(scale[rows, :, None]).flatten(1).sub_(weight[rows])
        integers[rows] = chosen
    return integers
