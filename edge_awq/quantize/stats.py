"""What calibration has to remember of a linear's inputs, and how it is collected while a block runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_awq.model.decoder import Weights, plain_linear
from edge_awq.quantize.gptq import spans

STRIP = 512  # channels: rows of a Hessian's lower triangle that are summed at once


@dataclass(frozen=True)
class InputStats:
    """What calibration saw at the input x [tokens, K] of some linears.

    Attributes:
        mean_abs: mean |x| of each channel over all tokens, [K].
        gram: mean x_g x_g^T of each group of g channels over all tokens, [K/g, g, g].
        sample: x itself at some of the tokens, [samples, K].
        hessian: mean x x^T of each span of channels over all tokens, [w, w]; empty where nothing asks for it.
    """

    mean_abs: torch.Tensor
    gram: torch.Tensor
    sample: torch.Tensor
    hessian: tuple[torch.Tensor, ...] = ()

    @property
    def mean_square(self) -> torch.Tensor:
        """Mean x^2 of each channel over all tokens, [K]."""
        return self.gram.diagonal(dim1=1, dim2=2).flatten()

    def divided(self, scales: torch.Tensor) -> InputStats:
        """The statistics of x / scales, with scales [K]."""
        by_group = scales.view(self.gram.shape[0], -1)
        gram = self.gram / (by_group[:, :, None] * by_group[:, None, :])
        by_span = scales.split([len(part) for part in self.hessian]) if self.hessian else ()
        hessian = tuple((part / span).div_(span[:, None]) for part, span in zip(self.hessian, by_span, strict=True))
        return InputStats(self.mean_abs / scales, gram, self.sample / scales, hessian)


class InputObserver:
    """Collects InputStats over many calls; ``linear`` is the hook for a block's forward pass.

    Args:
        group_sizes: linear to watch -> channels per group. Of linears that share an input, one is enough.
        sampled: which of all the tokens to come are kept, [tokens] bool.
        hessians: whether Hessians are summed, which takes most of the time.
    """

    def __init__(self, group_sizes: dict[str, int], sampled: torch.Tensor, hessians: bool = False) -> None:
        self._group_sizes = group_sizes
        self._with_hessians = hessians
        self._hessians: dict[str, tuple[torch.Tensor, ...]] = {}
        self._sampled = sampled
        self._tokens = dict.fromkeys(group_sizes, 0)
        self._sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._samples: dict[str, list[torch.Tensor]] = {name: [] for name in group_sizes}

    def linear(self, name: str, x: torch.Tensor, weights: Weights) -> torch.Tensor:
        """The plain linear; counts its input x [..., K] on the way."""
        if name in self._group_sizes:
            self.count(name, x)
        return plain_linear(name, x, weights)

    def count(self, name: str, x: torch.Tensor) -> None:
        """Count the next inputs x [..., K] of the linear ``name``."""
        x = x.flatten(0, -2)
        seen = self._tokens[name]
        self._tokens[name] = seen + len(x)
        self._samples[name].append(x[self._sampled[seen : seen + len(x)]])
        groups = x.unflatten(1, (-1, self._group_sizes[name])).transpose(0, 1)  # [K/g, tokens, g]
        sums = x.abs().sum(0), torch.bmm(groups.transpose(1, 2), groups)
        if seen:
            sums = tuple(before.add_(new) for before, new in zip(self._sums[name], sums, strict=True))
        self._sums[name] = sums
        if self._with_hessians:
            self._add_squares(name, x)

    def _add_squares(self, name: str, x: torch.Tensor) -> None:
        """Add x^T x, of which the lower triangle is enough, for x [tokens, K]."""
        widths = spans(x.shape[1], self._group_sizes[name])
        if name not in self._hessians:
            self._hessians[name] = tuple(torch.zeros(width, width) for width in widths)
        for total, part in zip(self._hessians[name], x.split(widths, dim=1), strict=True):
            for start in range(0, len(total), STRIP):
                stop = min(start + STRIP, len(total))
                total[start:stop, :stop].addmm_(part[:, start:stop].T, part[:, :stop])

    def stats(self) -> dict[str, InputStats]:
        """Means over everything counted so far, by linear; nothing can be counted afterwards."""
        found = {}
        for name, (sum_abs, gram) in self._sums.items():
            tokens = self._tokens[name]
            hessian = tuple(_mirrored(total.div_(tokens)) for total in self._hessians.get(name, ()))
            found[name] = InputStats(sum_abs / tokens, gram / tokens, torch.cat(self._samples[name]), hessian)
        return found


def _mirrored(lower: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix whose lower triangle is given, in place."""
    for start in range(0, len(lower), STRIP):
        strip = lower[start : start + STRIP]
        lower[:start, start : start + STRIP] = strip[:, :start].T
        square = strip[:, start : start + STRIP]
        square.copy_(square.tril() + square.tril(-1).T)
    return lower
