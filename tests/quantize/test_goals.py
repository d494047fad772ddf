"""What each step is worth on one layer: output error relative to plain rounding, 4 bits in groups of 128.

Two fixtures: outlier activations that no weight makes up for, where plain rounding loses most, and outliers whose
weights make up for them. The project's goals are for the first with outliers x30: AWQ's scales 0.30, with searched
ranges 0.20, recipe best 0.08.
"""

import functools

import pytest
import torch

from edge_awq.quantize.descent import descend
from edge_awq.quantize.feedback import search_feedback_scales
from edge_awq.quantize.gptq import factorize, round_columns, salience
from edge_awq.quantize.int4 import dequantize, quantize, rounded
from edge_awq.quantize.search import search_ranges, search_scales
from edge_awq.quantize.stats import InputStats
from one_layer import GRID, OUTLIERS, injected, layer, output_error

SEEDS = (0, 1)


def candidates_of(weight, x):
    """Weights [N, K] that stand for ``weight`` after each step, calibrated with x."""
    scales = search_scales({"w": weight}, x.abs().mean(0), GRID, lambda changed: x @ changed["w"].T).scales
    scaled, inputs = weight * scales, x / scales
    groups = inputs.unflatten(1, (-1, GRID.group_size)).transpose(0, 1)
    ranges = search_ranges(scaled, torch.bmm(groups.transpose(1, 2), groups) / len(x), GRID)
    return {
        "scales": rounded(scaled, GRID) / scales,
        "ranges": dequantize(quantize("w", scaled, GRID, ranges)[0]) / scales,
        "best": best_of(weight, x),
    }


def stats_of(x):
    """What calibration keeps of inputs x [tokens, K]."""
    groups = x.unflatten(1, (-1, GRID.group_size)).transpose(0, 1)
    gram = torch.bmm(groups.transpose(1, 2), groups) / len(x)
    return InputStats(x.abs().mean(0), gram, x[:0], (x.T @ x / len(x),))


def best_of(weight, x):
    """The weights [N, K] that recipe best makes of a linear without heads."""
    stats = stats_of(x)
    scales = search_feedback_scales({"w": weight}, stats, [factorize(stats.hessian[0])], GRID).scales
    scaled, hessians = weight * scales, stats.divided(scales).hessian
    factors = [factorize(hessians[0])]
    ranges = search_ranges(scaled, salience(factors).unflatten(0, (-1, GRID.group_size)), GRID)
    integers = descend(scaled, round_columns(scaled, ranges, factors, GRID), ranges, hessians, GRID)
    return dequantize(quantize("w", scaled, GRID, ranges, integers)[0]) / scales


@functools.cache
def relative_errors(factor, seed, made_up_for):
    """Error relative to plain rounding's, by step."""
    weight, x = layer(seed)
    if made_up_for:
        weight, x = injected(weight, x, factor)
    else:
        x[:, list(OUTLIERS)] *= factor
    plain = output_error(rounded(weight, GRID), weight, x)
    return {step: output_error(lossy, weight, x) / plain for step, lossy in candidates_of(weight, x).items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_outliers_x30(seed):
    """The project's goals; 0.19 and 0.16 were measured with ranges, 0.078 and 0.067 with recipe best."""
    errors = relative_errors(30.0, seed, made_up_for=False)
    assert errors["scales"] <= 0.30
    assert errors["ranges"] <= 0.20
    assert errors["best"] <= 0.08


@pytest.mark.parametrize("made_up_for", [False, True])
@pytest.mark.parametrize("factor", [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0])
def test_no_step_is_ever_worse_than_plain_rounding(factor, made_up_for):
    for seed in SEEDS:
        assert max(relative_errors(factor, seed, made_up_for).values()) <= 1.0


@pytest.mark.parametrize("made_up_for", [False, True])
@pytest.mark.parametrize("factor", [1.0, 3.0, 10.0, 30.0, 100.0])
def test_searched_ranges_are_worth_a_tenth_at_least(factor, made_up_for):
    for seed in SEEDS:
        errors = relative_errors(factor, seed, made_up_for)
        assert errors["ranges"] < 0.9 * errors["scales"]


@functools.cache
def held_out_errors(factor, seed, made_up_for):
    """Errors of AWQ with ranges and of recipe best on tokens that neither has seen, as many as calibrated."""
    weight, x = layer(seed, tokens=2048)
    if made_up_for:
        weight, x = injected(weight, x, factor)
    else:
        x[:, list(OUTLIERS)] *= factor
    candidates = candidates_of(weight, x[:1024])
    return {step: output_error(candidates[step], weight, x[1024:]) for step in ("ranges", "best")}


@pytest.mark.parametrize(("factor", "made_up_for"), [
    (1.0, False), (30.0, False), (30.0, True), (100.0, False), (100.0, True)])
def test_feedback_is_worth_a_fifth_at_least_on_tokens_that_it_has_not_seen(factor, made_up_for):
    """It fits 256 channels to 1024 tokens, which flatters it by a fifth to a third there."""
    for seed in SEEDS:
        errors = held_out_errors(factor, seed, made_up_for)
        assert errors["best"] < 0.8 * errors["ranges"]
