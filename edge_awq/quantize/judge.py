"""Whose output judges the scales of a fold group: the attention's, the MLP's or the linear's own, as in llm-awq.

llm-awq runs the module over all calibration tokens at each of 20 grid points. Here each point has a fixed amount of
work: the attention runs over the beginnings of all sequences, the others over sampled tokens and as many rows as fit
into it. Rounding errors of different rows are independent, so the error of some tells that of all; of an MLP's inner
channels those are taken that matter most. Small models fit whole. tests/quantize/test_judge.py holds the choice
against llm-awq's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edge_awq.model.config import DecoderConfig
from edge_awq.model.decoder import Weights, attention, mlp, norm
from edge_awq.model.folds import ACT_SCALE

POINT_WORK = 3e9  # multiplications per grid point: well under 0.1 s on two cores
MIN_ROWS = 256
MIN_BEGINNING = 64  # tokens of each sequence


@dataclass(frozen=True)
class Judged:
    """weights: the linears to be rounded, by stored name, perhaps not all of their rows; output: of such weights."""

    weights: Weights
    output: Callable[[Weights], torch.Tensor]


def beginning(hidden: torch.Tensor, work_per_token: int, work: float = POINT_WORK) -> int:
    """How many tokens of every sequence in hidden [sequences, tokens, ...] can be run; what follows changes nothing."""
    affordable = int(work / (work_per_token * hidden.shape[0]))
    return min(hidden.shape[1], max(MIN_BEGINNING, affordable))


def judged_attention(config: DecoderConfig, index: int, weights: Weights, hidden: torch.Tensor) -> Judged:
    """q, k and v by the output of the attention; hidden [sequences, tokens, hidden_size] are inputs of the block."""
    tokens = beginning(hidden, sum(weights[f"{name}.weight"].numel() for name in ("q", "k", "v", "o")))
    x = norm(config, "attn_norm", hidden[:, :tokens], weights)
    return Judged(_matrices(weights, ("q", "k", "v")), lambda changed: attention(config, index, weights | changed, x))


def judged_mlp(config: DecoderConfig, weights: Weights, x: torch.Tensor, inner_square: torch.Tensor) -> Judged:
    """up, and gate where there is one, by the output of the MLP, thinned to the inner channels that add most to it.

    Args:
        x: input of the MLP, [samples, hidden_size].
        inner_square: mean square of each input channel of down, [intermediate_size].
    """
    energy = inner_square * weights["down.weight"].square().sum(dim=0)
    linears = [name for name in ("gate", "up") if f"{name}.weight" in weights]
    rows = energy.topk(min(len(energy), _affordable_rows((len(linears) + 1) * x.numel()))).indices
    thin = {name: tensor[rows] for name, tensor in weights.items() if name.partition(".")[0] in (*linears, ACT_SCALE)}
    thin |= {"down.weight": weights["down.weight"][:, rows]}
    return Judged(_matrices(thin, linears), lambda changed: mlp(config, thin | changed, x))


def judged_together(parts: Sequence[Judged]) -> Judged:
    """Linears of several parts that take one input, by the outputs of all; each part counts by its mean square."""
    if len(parts) == 1:
        return parts[0]
    weights = {name: weight for part in parts for name, weight in part.weights.items()}

    def output(changed: Weights) -> torch.Tensor:
        outputs = [part.output({name: changed[name] for name in part.weights}) for part in parts]
        return torch.cat([y.flatten() * y.numel() ** -0.5 for y in outputs])

    return Judged(weights, output)


def judged_linears(weights: Weights, linears: Iterable[str], x: torch.Tensor, generator: torch.Generator) -> Judged:
    """Linears by their own outputs, at random rows of each; x [samples, K] is their input."""
    matrices = _matrices(weights, linears)
    count = _affordable_rows(len(matrices) * x.numel())
    thin = {name: matrix[torch.randperm(len(matrix), generator=generator)[:count]] for name, matrix in matrices.items()}
    return Judged(thin, lambda changed: torch.cat([F.linear(x, changed[name]) for name in thin], dim=-1))


def _matrices(weights: Weights, linears: Iterable[str]) -> Weights:
    return {f"{name}.weight": weights[f"{name}.weight"] for name in linears}


def _affordable_rows(work_per_row: int) -> int:
    return max(MIN_ROWS, int(POINT_WORK / work_per_row))
