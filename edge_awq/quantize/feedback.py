"""GPTQ on a whole unit: channel scales, ranges and integers that are chosen for what is left after feedback.

AWQ picks its scales by what plain rounding loses. Feedback makes up for most of that, and what it leaves is known
beforehand: each weight's share is scale^2 / 12 times the salience of its channel. So a whole plane of scales is
searched without rounding anything: mean|x| ** a, and one over mean|w| ** b as in AutoAWQ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import torch

from edge_awq.quantize.descent import descend
from edge_awq.quantize.gptq import Factor, factorize, round_columns, salience
from edge_awq.quantize.heads import round_heads
from edge_awq.quantize.int4 import IntGrid, group_ranges, quantize, scales_and_zeros
from edge_awq.quantize.search import SMALLEST_SCALE, channel_scales, search_ranges
from edge_awq.quantize.stats import InputStats
from edge_awq.quantize.unit import Candidate, Unit

INPUT_RATIOS = tuple(step / 20 for step in range(21))
WEIGHT_RATIOS = (0.0, 0.5, 1.0)
SAMPLED_ROWS = 512  # of each linear, evenly spread: what a scale search loses by it is far below a step of the grid


@dataclass(frozen=True)
class FeedbackScales:
    """Channel scales [K], and the exponents of mean|x| and of 1 / mean|w| that they are made with."""

    scales: torch.Tensor
    ratios: tuple[float, float]


def search_feedback_scales(
    weights: dict[str, torch.Tensor], stats: InputStats, factors: list[Factor], grid: IntGrid
) -> FeedbackScales:
    """Find the scales that leave least after feedback when all of ``weights`` [n, K] are rounded.

    The linears share one input with these statistics; each counts by its share of its own output's energy, taken with
    uncorrelated channels.
    """
    left = salience(factors)
    mean_weight = torch.cat(list(weights.values())).abs().mean(0)
    mean_weight /= float(mean_weight.max()) or 1.0
    thin = [weight[:: -(-len(weight) // SAMPLED_ROWS)] for weight in weights.values()]
    energies = [max(float(weight.square().mean(0) @ stats.mean_square), torch.finfo(torch.float32).tiny) / len(weight)
                for weight in thin]

    def scales_of(ratios: tuple[float, float]) -> torch.Tensor:
        scales = channel_scales(stats.mean_abs, ratios[0]) / mean_weight.pow(ratios[1]).clamp_(min=SMALLEST_SCALE)
        return scales / (scales.max() * scales.min()).sqrt()

    def loss(ratios: tuple[float, float]) -> float:
        scales = scales_of(ratios)
        by_group = (left / scales.square()).unflatten(0, (-1, grid.group_size)).sum(-1)
        total = 0.0
        for weight, energy in zip(thin, energies, strict=True):
            groups = (weight * scales).unflatten(1, (-1, grid.group_size))
            steps = scales_and_zeros(*group_ranges(groups), grid)[0]
            total += float((steps.square() @ by_group).sum(dtype=torch.float64)) / energy
        return total

    losses = {(a, b): loss((a, b)) for b in WEIGHT_RATIOS for a in INPUT_RATIOS[::2]}
    a, b = min(losses, key=losses.__getitem__)
    nearest = INPUT_RATIOS.index(a)
    losses |= {(a, b): loss((a, b)) for a in INPUT_RATIOS[max(nearest - 1, 0) : nearest + 2]}
    ratios = min(losses, key=losses.__getitem__)
    return FeedbackScales(scales_of(ratios), ratios)


def round_with_feedback(
    unit: Unit, candidate: Candidate, stats: dict[str, InputStats], couplings: dict[str, torch.Tensor]
) -> Candidate:
    """Every linear rounded by GPTQ over ranges searched for it, from the weights as they stand.

    Linears with couplings get feedback between the rows of a head as well, the others a pass of descent.
    """
    vectors = {name: tensor.clone() for name, tensor in unit.weights.items() if tensor.ndim == 1}
    packed, clipped = {}, {}
    for first, linears in groupby(sorted(unit.linears, key=unit.input_of), unit.input_of):
        hessians = stats[first].hessian
        factors = [factorize(hessian) for hessian in hessians]
        left = salience(factors)
        for linear in linears:
            weight, grid = unit.weights[f"{linear}.weight"], unit.grid_of(linear)
            ranges = search_ranges(weight, left.unflatten(0, (-1, grid.group_size)), grid)
            if linear in couplings:
                integers = round_heads(weight, ranges, couplings[linear], factors, grid)
            else:
                integers = descend(weight, round_columns(weight, ranges, factors, grid), ranges, hessians, grid)
            packed[linear], clipped[linear] = quantize(unit.path(linear), weight, grid, ranges, integers)
    return replace(candidate, vectors=vectors, packed=packed, clipped=clipped)
