"""What recipe best adds to GPTQ - predicted scales, descent, feedback within heads - against plain definitions."""

from itertools import pairwise

import pytest
import torch

from edge_awq.model.decoder import load_decoder
from edge_awq.quantize.awq import quantize_block
from edge_awq.quantize.descent import descend
from edge_awq.quantize.feedback import search_feedback_scales
from edge_awq.quantize.gptq import DAMPING, factorize, round_columns, salience
from edge_awq.quantize.heads import DAMPING as ROW_DAMPING
from edge_awq.quantize.heads import head_couplings, round_heads
from edge_awq.quantize.int4 import IntGrid, group_ranges, scales_and_zeros
from edge_awq.quantize.stats import InputStats
from edge_awq.quantize.unit import Trial, Unit
from quantized import BEST
from tiny import make_tiny

GRID = IntGrid(4, 64)


def layer(rows=24, width=128, tokens=600, seed=0, outlier=30.0):
    """Weights [rows, width], their whole ranges, correlated inputs with an outlier channel, and their Hessian."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * width**-0.5 + torch.eye(width)
    x = torch.randn(tokens, width, generator=generator) @ mixing
    x[:, 3] *= outlier
    weight = torch.randn(rows, width, generator=generator)
    return weight, group_ranges(weight.unflatten(1, (-1, GRID.group_size))), x, x.T @ x / tokens


def errors_of(integers, weight, ranges, grid=GRID):
    """What is stored minus the weight, [N, K] float64."""
    scale, zero = (part.double().repeat_interleave(grid.group_size, dim=1) for part in scales_and_zeros(*ranges, grid))
    return (integers.double() - zero) * scale - weight.double()


def damped(hessian, damping=DAMPING):
    return hessian.double() + damping * torch.diag(hessian.diagonal().double())


def coupling_of(heads, size, seed=0):
    """Well-correlated gradients' mean squares, [heads, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(size) + torch.randn(heads, size, size, generator=generator)
    return mixing @ mixing.transpose(1, 2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_descent_lowers_every_rows_error_and_leaves_what_no_single_column_can_improve(symmetric):
    grid = IntGrid(4, 64, symmetric)
    weight, ranges, _, hessian = layer()
    integers = (weight.new_zeros(weight.shape) + 8).to(torch.uint8)
    for start in (integers, round_columns(weight, ranges, [factorize(hessian)], grid)):
        found, rows = start, []
        for _ in range(12):
            error = errors_of(found, weight, ranges, grid)
            rows.append(((error @ damped(hessian)) * error).sum(1))
            found = descend(weight, found, ranges, (hessian,), grid)
        # float32 sums: a column on the edge between two integers may go either way, for 1e-4 of the error at most.
        assert all((after <= before * (1 + 1e-4)).all() for before, after in pairwise(rows))
        assert float(rows[1].sum()) < 0.99 * float(rows[0].sum())
    error = errors_of(found, weight, ranges, grid)
    step = scales_and_zeros(*ranges, grid)[0].double().repeat_interleave(64, dim=1)
    pull = error @ damped(hessian)
    for move in (-1, 1):  # (e + m s)^2 terms: 2 m s (H e)_j + (m s)^2 H_jj
        gain = 2 * move * step * pull + step.square() * damped(hessian).diagonal()
        possible = (found.int() + move >= 0) & (found.int() + move <= grid.top)
        assert float((gain[possible] >= -1e-4 * rows[-1].mean()).float().mean()) > 0.999


def test_descent_takes_every_span_by_itself():
    weight, ranges, _, hessian = layer()
    parts = (hessian[:64, :64].contiguous(), hessian[64:, 64:].contiguous())
    start = round_columns(weight, ranges, [factorize(part) for part in parts], GRID)
    both = torch.block_diag(*parts)
    assert torch.equal(descend(weight, start, ranges, parts, GRID), descend(weight, start, ranges, (both,), GRID))


def test_rows_that_do_not_act_together_are_rounded_as_gptq_does():
    weight, ranges, _, hessian = layer()
    factors = [factorize(hessian)]
    coupling = torch.diag_embed(torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) + 0.1)
    expected = round_columns(weight, ranges, factors, GRID)
    assert torch.equal(round_heads(weight, ranges, coupling, factors, GRID), expected)


def nearest_plane(weight, ranges, coupling, hessian, damping):
    """One head as one lattice: Babai's nearest plane with the Cholesky factor of the Kronecker product, float64."""
    rows, width = weight.shape
    row_order, order = (matrix.diagonal().argsort(stable=True) for matrix in (coupling, hessian))
    whole = torch.kron(damped(coupling, damping)[row_order][:, row_order], damped(hessian)[order][:, order])
    lower = torch.linalg.cholesky(whole)
    scale, zero = (part.double().repeat_interleave(GRID.group_size, dim=1) for part in scales_and_zeros(*ranges, GRID))
    flat = [part[row_order][:, order].flatten() for part in (weight.double(), scale, zero)]
    errors, integers = torch.zeros(rows * width, dtype=torch.float64), torch.zeros(rows * width, dtype=torch.uint8)
    for i in reversed(range(rows * width)):
        wanted = flat[0][i] - lower[i + 1 :, i] @ errors[i + 1 :] / lower[i, i]
        q = (wanted / flat[1][i] + flat[2][i]).round().clamp(0, GRID.top)
        errors[i] = (q - flat[2][i]) * flat[1][i] - flat[0][i]
        integers[i] = int(q)
    found = torch.empty(rows, width, dtype=torch.uint8)
    found[row_order[:, None], order] = integers.view(rows, width)
    return found


def test_a_head_is_rounded_to_the_nearest_plane_of_the_kronecker_product():
    weight, ranges, _, hessian = layer(rows=12)
    coupling = coupling_of(2, 6)
    found = round_heads(weight, ranges, coupling, [factorize(hessian)], GRID)
    for head, rows in enumerate((slice(0, 6), slice(6, 12))):
        bounds = tuple(bound[rows] for bound in ranges)
        expected = nearest_plane(weight[rows], bounds, coupling[head], hessian, ROW_DAMPING)
        assert float((found[rows] != expected).float().mean()) < 0.01  # float32 may round a tie the other way


@pytest.mark.parametrize("seed", [0, 1])
def test_feedback_within_heads_lowers_the_error_that_counts(seed):
    weight, ranges, _, hessian = layer(seed=seed, outlier=1.0)  # as after folding: feedback stays within the ranges
    coupling, factors = coupling_of(3, 8, seed), [factorize(hessian)]

    def cost(integers):
        error = errors_of(integers, weight, ranges).unflatten(0, (3, 8))
        return float(torch.einsum("hrs,hsk,kl,hrl->", coupling.double(), error, hessian.double(), error))

    assert cost(round_heads(weight, ranges, coupling, factors, GRID)) < 0.7 * cost(
        round_columns(weight, ranges, factors, GRID))


def test_couplings_are_mean_squares_of_gradients():
    """o after v alone: the gradient at v is o's transpose times the probe, whose mean square is known."""
    generator = torch.Generator().manual_seed(0)
    weights = {"v.weight": torch.randn(8, 16, generator=generator), "o.weight": torch.randn(16, 8, generator=generator)}

    def forward(x, weights, linear):
        return linear("o", linear("v", x, weights), weights)

    unit = Unit("made up", weights, ("v", "o"), (), GRID, forward)
    x = torch.randn(20, 400, 16, generator=generator)
    outputs = torch.ones(20, 400, 16)  # relative to which errors count
    found = head_couplings(unit, Trial(x, outputs), 4, torch.Generator().manual_seed(1))
    mixed = weights["o.weight"].T @ weights["o.weight"] * x.shape[0] * x.shape[1]
    expected = torch.stack([mixed[:4, :4], mixed[4:, 4:]])
    assert set(found) == {"v"}
    # 8000 probes: 1/sqrt(8000) = 1.1 % of sqrt(M_ii M_jj) per element, so 5 % in norm is far out.
    assert float((found["v"] - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("made_up_for", [False, True])
def test_scales_are_chosen_by_what_feedback_will_leave(made_up_for):
    """The prediction ranks scales as rounding does: none of a coarse grid is better by more than a tenth."""
    weight, _, x, hessian = layer(rows=64, width=128)
    if made_up_for:
        weight[:, 3] /= 30

    def left(scales):
        scaled, own = weight * scales, hessian / (scales[:, None] * scales)
        ranges = group_ranges(scaled.unflatten(1, (-1, 64)))
        error = errors_of(round_columns(scaled, ranges, [factorize(own)], GRID), scaled, ranges) / scales
        return float(((error @ hessian.double()) * error).sum())

    groups = x.unflatten(1, (-1, 64)).transpose(0, 1)
    stats = InputStats(x.abs().mean(0), torch.bmm(groups.transpose(1, 2), groups) / len(x), x[:0], (hessian,))
    choice = search_feedback_scales({"w": weight}, stats, [factorize(hessian)], GRID)
    assert left(choice.scales) <= left(torch.ones(128))
    others = [stats.mean_abs.pow(a) / weight.abs().mean(0).pow(b) for a in (0.25, 0.5, 0.75) for b in (0.0, 1.0)]
    assert left(choice.scales) <= 1.1 * min(map(left, others))


def test_salience_is_what_other_channels_cannot_explain():
    """Of each channel, the part that a regression on the channels rounded after it leaves."""
    _, _, x, hessian = layer()
    order = hessian.diagonal().argsort(stable=True)
    found = salience([factorize(hessian, 0.0)])
    for place in (5, 60, 127):
        channel, later = order[place], order[:place]
        fit = torch.linalg.lstsq(x[:, later].double(), x[:, channel].double()).solution
        rest = (x[:, channel].double() - x[:, later].double() @ fit).square().mean()
        assert float(found[channel]) == pytest.approx(float(rest), rel=1e-3)


def test_a_held_out_sequence_decides(tmp_path, monkeypatch):
    """GPTQ that is told the truth about every sequence but the last, and there does harm, is not kept."""
    make_tiny(tmp_path, num_hidden_layers=1)
    decoder = load_decoder(tmp_path)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 8, 128, generator=generator)
    honest = quantize_block(decoder, 0, hidden, BEST)[0].report
    hidden[:15, :, :] = hidden[:15, :, :1]  # one direction, so that feedback gives up all others
    report = quantize_block(decoder, 0, hidden, BEST)[0].report
    assert honest.loss_gptq < report.loss_gptq and report.kept != "gptq"
    assert report.loss_gptq > min(report.loss_awq, report.loss_rtn)
