"""The two searches of AWQ (arXiv 2306.00978), as pure functions over tensors: channel scales, then clipped ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edge_awq.model.decoder import Weights
from edge_awq.quantize.int4 import IntGrid, group_ranges, rounded, row_chunks, scales_and_zeros

RATIOS = tuple(step / 20 for step in range(20))  # llm-awq's grid; 0 is plain rounding
COARSE = 2  # every second ratio first, then the neighbours of the best: 11 or 12 points instead of 20
SHRINK = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # fractions of the whole range, after the whole range itself
MOVES = (0.1, 0.05, 0.025, 0.0125)  # then each end alone moves in and out by these, as fractions of its whole range
SMALLEST_SCALE = 1e-4  # a channel that calibration never excites must not lose its weights altogether


@dataclass(frozen=True)
class ScaleChoice:
    """The best of RATIOS: its channel scales [K], the error of plain rounding and with these scales."""

    ratio: float
    scales: torch.Tensor
    error_before: float
    error_after: float


def channel_scales(mean_abs: torch.Tensor, ratio: float) -> torch.Tensor:
    """AWQ's scales mean|x| ** ratio, divided by sqrt(max * min), for mean_abs [K] -> [K]."""
    scales = mean_abs.pow(ratio).clamp_(min=SMALLEST_SCALE)
    return scales / (scales.max() * scales.min()).sqrt()


def search_scales(
    weights: Weights, mean_abs: torch.Tensor, grid: IntGrid, output: Callable[[Weights], torch.Tensor]
) -> ScaleChoice:
    """Find the ratio whose scales lose least when all of ``weights`` are rounded.

    Args:
        weights: the linears that share one input, each [n, K].
        mean_abs: mean |x| of that input, [K].
        output: what is judged, as a function of such weights; the error is relative to its square.

    Ratio 0 is in the grid and wins ties, so the choice is never worse than plain rounding.
    """
    expected = output(weights)
    energy = _square(expected)
    errors: dict[float, float] = {}

    def judge(ratio: float) -> None:
        scales = channel_scales(mean_abs, ratio)
        lossy = {name: rounded(weight * scales, grid).div_(scales) for name, weight in weights.items()}
        errors[ratio] = _square(output(lossy).sub_(expected)) / max(energy, torch.finfo(torch.float32).tiny)

    for ratio in RATIOS[::COARSE]:
        judge(ratio)
    nearest = RATIOS.index(_best(errors))
    for ratio in RATIOS[max(nearest - 1, 0) : nearest + 2]:
        if ratio not in errors:
            judge(ratio)
    ratio = _best(errors)
    return ScaleChoice(ratio, channel_scales(mean_abs, ratio), errors[RATIOS[0]], errors[ratio])


def _best(errors: dict[float, float]) -> float:
    return min(errors, key=lambda ratio: (errors[ratio], ratio))


def _square(x: torch.Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


def search_ranges(weight: torch.Tensor, gram: torch.Tensor, grid: IntGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Range of every row and group of ``weight`` [N, K] that loses least: low and high, each [N, K/g].

    As in llm-awq each group is judged by its own share of the output, d_g @ x_g for a rounding error d; its mean
    square over the tokens is d_g G_g d_g with G_g = mean x_g x_g^T: ``gram`` [K/g, g, g], or just a diagonal
    [K/g, g]. llm-awq clips both ends at the same magnitude; here each end has its own place, found in ever smaller
    steps: 23 errors per group, for less than what the best of all 100 pairs of ten fractions leaves. The whole range
    comes first, so no group gets worse.
    """
    parts = []
    for chunk in row_chunks(*weight.shape):
        groups = weight[chunk].unflatten(1, (-1, grid.group_size))
        parts.append(_search_group_ranges(groups, gram, grid))
    low, high = (torch.cat(column) for column in zip(*parts, strict=True))
    return low, high


def _search_group_ranges(
    groups: torch.Tensor, gram: torch.Tensor, grid: IntGrid
) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = group_ranges(groups)
    best = low, high, group_errors(groups, (low, high), gram, grid)

    def attempt(low: torch.Tensor, high: torch.Tensor) -> None:
        nonlocal best
        found = low.clamp(max=0), high.clamp(min=0)  # a range includes zero
        error = group_errors(groups, found, gram, grid)
        better = error < best[2]
        best = tuple(torch.where(better, new, old) for new, old in zip((*found, error), best, strict=True))

    for fraction in SHRINK:
        attempt(low * fraction, high * fraction)
    for move in MOVES:
        for step in (-move, move):
            attempt(best[0] + low * step, best[1])
        for step in (-move, move):
            attempt(best[0], best[1] + high * step)
    return best[:2]


def group_errors(
    groups: torch.Tensor, ranges: tuple[torch.Tensor, torch.Tensor], gram: torch.Tensor, grid: IntGrid
) -> torch.Tensor:
    """Mean square output error of quantizing groups [n, K/g, g] over ``ranges``, low and high [n, K/g] -> [n, K/g]."""
    scale, zero = scales_and_zeros(*ranges, grid)
    exact = (groups / scale[..., None]).add_(zero[..., None])
    by_group = exact.round().clamp_(0, grid.top).sub_(exact).transpose(0, 1)  # errors in steps, [K/g, n, g]
    if gram.ndim == 2:
        return torch.bmm(by_group.square_(), gram[..., None])[..., 0].T * scale.square()
    return torch.bmm(by_group, gram).mul_(by_group).sum(-1).T * scale.square()
