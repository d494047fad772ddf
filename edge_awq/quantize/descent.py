"""Coordinate descent on integers that are chosen already: each column in turn moves to where the others want it.

GPTQ fixes a column before it knows the errors of those that follow. A pass over all columns afterwards never raises the
squared output error d H d of a row's error d, with the damped H that GPTQ worked with.
"""

from __future__ import annotations

from itertools import accumulate

import torch

from edge_awq.quantize.gptq import BLOCK, CHUNK_ELEMENTS, DAMPING, DEAD
from edge_awq.quantize.int4 import IntGrid, row_chunks, scales_and_zeros

Ranges = tuple[torch.Tensor, torch.Tensor]


def descend(
    weight: torch.Tensor, integers: torch.Tensor, ranges: Ranges, hessians: tuple[torch.Tensor, ...], grid: IntGrid
) -> torch.Tensor:
    """Better integers uint8 [N, K] than ``integers`` for ``weight`` [N, K] over ranges [N, K/g]; a Hessian per span."""
    found = torch.empty_like(integers)
    for rows in row_chunks(*weight.shape, CHUNK_ELEMENTS):
        steps = scales_and_zeros(*(bound[rows] for bound in ranges), grid)
        scale, zero = (values.repeat_interleave(grid.group_size, dim=1).T.contiguous() for values in steps)
        ends = list(accumulate(map(len, hessians)))
        for hessian, stop in zip(hessians, ends, strict=True):
            span = slice(stop - len(hessian), stop)
            columns = integers[rows, span].T.float()  # [w, n]
            errors = (columns - zero[span]).mul_(scale[span]).sub_(weight[rows, span].T)
            _descend_span(columns, errors, (scale[span], zero[span]), hessian, grid)
            found[rows, span] = columns.T.to(torch.uint8)
    return found


def _descend_span(columns: torch.Tensor, errors: torch.Tensor, steps: Ranges, hessian: torch.Tensor, grid: IntGrid
                  ) -> None:
    """One pass over ``columns`` and their ``errors`` [w, n], in place, the largest mean square first."""
    scale = steps[0]
    own = hessian.diagonal()
    floor = DEAD * float(own.max()) or 1.0
    damped = (own * (1 + DAMPING)).clamp_(min=floor)
    for channels in own.argsort(descending=True, stable=True).split(BLOCK):
        pull = hessian[channels] @ errors  # what all errors ask of these columns, [block, n]
        pull.addcmul_((damped - own)[channels, None], errors[channels])
        within = hessian[channels[:, None], channels]
        within.diagonal().copy_(damped[channels])
        for i, channel in enumerate(channels.tolist()):
            step = scale[channel]
            moved = (columns[channel] - pull[i] / (within[i, i] * step)).round_().clamp_(0, grid.top)
            change = (moved - columns[channel]).mul_(step)
            columns[channel] = moved
            errors[channel] += change
            pull.addr_(within[:, i], change)
