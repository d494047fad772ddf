"""GPTQ (arXiv 2210.17323): each column's rounding error is made up for by the columns that are rounded after it.

Scales and zero points are fixed before, so the order of the columns ("activation order", largest mean square first)
leaves no trace in what is stored. Written as Babai's nearest plane, which rounds to the same integers (arXiv
2507.18553): with H = L L^T the squared output error of an error d is |L^T d|^2, and each of its terms holds one column
and those rounded before. So one Cholesky factor does, no inverse is formed, and the blocks are matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from edge_awq.quantize.int4 import IntGrid, group_ranges, row_chunks, scales_and_zeros

WIDEST = 12288  # channels in one Hessian: 604 MB; of wider inputs, those in different spans are taken as uncorrelated
DAMPING = 0.01  # share of each diagonal element that is added to it, as the paper adds one of their mean
DEAD = 1e-12  # of the largest mean square: below it a channel carries nothing
BLOCK = 64  # columns between two matrix products
CHUNK_ELEMENTS = 1 << 24  # rows are independent: weights and errors take 64 MB each at a time


@dataclass(frozen=True)
class Factor:
    """Cholesky factor of one span's damped Hessian.

    Attributes:
        channels: of the span, in the order of ``lower``; the last is rounded first, [w].
        lower: float32 [w, w], lower triangular.
    """

    channels: torch.Tensor
    lower: torch.Tensor


def spans(width: int, group_size: int, widest: int = WIDEST) -> list[int]:
    """Widths of the spans that K = ``width`` channels are cut into: whole groups, as equal as can be."""
    groups = width // group_size
    count = -(-width // widest)
    ends = [groups * i // count for i in range(count + 1)]
    return [group_size * (end - start) for start, end in pairwise(ends)]


def factorize(hessian: torch.Tensor, damping: float = DAMPING) -> Factor:
    """Order the channels of ``hessian`` [w, w], mean x x^T, and factorize it.

    Damping goes by each channel's own size, so that large channels do not drown small ones, and AWQ's scales do not
    change what it means. It is raised tenfold as often as float32 rounding leaves the matrix indefinite.
    """
    channels = hessian.diagonal().argsort(stable=True)
    while True:
        ordered = hessian[channels[:, None], channels]
        diagonal = ordered.diagonal()
        floor = DEAD * float(diagonal[-1]) or 1.0
        diagonal.mul_(1 + damping).clamp_(min=floor)
        lower, failed = torch.linalg.cholesky_ex(ordered)
        if not failed:
            return Factor(channels, lower)
        damping *= 10


def salience(factors: list[Factor]) -> torch.Tensor:
    """Mean square of each channel that the channels rounded after it cannot make up for, [K] over all spans.

    Once feedback has done what it can, an error d leaves d^2 times this: L_ii^2.
    """
    parts = []
    for factor in factors:
        found = torch.empty(len(factor.channels))
        found[factor.channels] = factor.lower.diagonal().square()
        parts.append(found)
    return torch.cat(parts)


def round_columns(
    weight: torch.Tensor, ranges: tuple[torch.Tensor, torch.Tensor] | None, factors: list[Factor], grid: IntGrid
) -> torch.Tensor:
    """Integers uint8 [N, K] for ``weight`` [N, K] over ranges [N, K/g] each (None: whole), one factor per span."""
    integers = torch.empty(weight.shape, dtype=torch.uint8)
    for rows in row_chunks(*weight.shape, CHUNK_ELEMENTS):
        groups = weight[rows].unflatten(1, (-1, grid.group_size))
        bounds = group_ranges(groups) if ranges is None else tuple(bound[rows] for bound in ranges)
        integers[rows] = round_to(weight[rows], scales_and_zeros(*bounds, grid), factors, grid)
    return integers


def round_to(
    weight: torch.Tensor, steps: tuple[torch.Tensor, torch.Tensor], factors: list[Factor], grid: IntGrid
) -> torch.Tensor:
    """Integers uint8 [n, K] for ``weight`` [n, K] with the scales and zero points ``steps``, [n, K/g] each."""
    scale, zero = (values.T.contiguous() for values in steps)  # [K/g, n]
    integers = torch.empty(weight.shape, dtype=torch.uint8)
    starts = accumulate((len(factor.channels) for factor in factors), initial=0)
    for start, factor in zip(starts, factors, strict=False):
        channels = factor.channels + start
        found = _round_span(weight.T[channels], (scale, zero, channels // grid.group_size), factor, grid)
        integers[:, channels] = found.T
    return integers


def _round_span(
    columns: torch.Tensor, steps: tuple[torch.Tensor, torch.Tensor, torch.Tensor], factor: Factor, grid: IntGrid
) -> torch.Tensor:
    """Round ``columns`` [w, n], the last first; steps: scale and zero [K/g, n], and each column's group [w].

    Returns:
        Integers uint8 [w, n].
    """
    scale, zero, groups = steps[0], steps[1], steps[2].tolist()
    errors = torch.empty_like(columns)
    integers = torch.empty(columns.shape, dtype=torch.uint8)
    for stop in range(len(columns), 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        # What the columns rounded so far ask of these, in units of the column itself.
        share = factor.lower[start:, start:stop] / factor.lower.diagonal()[start:stop]
        wanted = columns[start:stop].addmm(share[stop - start :].T, errors[stop:])
        within = share[: stop - start].T.contiguous()
        done = errors[start:stop]
        for i in reversed(range(stop - start)):
            column, group = wanted[i], groups[start + i]
            if i + 1 < stop - start:
                column.addmv_(done[i + 1 :].T, within[i, i + 1 :])
            found = column.div_(scale[group]).add_(zero[group]).round_().clamp_(0, grid.top)
            integers[start + i] = found
            torch.sub(columns[start + i], found.sub_(zero[group]).mul_(scale[group]), out=done[i])
    return integers
