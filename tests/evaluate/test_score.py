"""The numbers of an evaluation, against scipy's."""

import numpy as np
import pytest
from scipy import special, stats

from edge_awq.distributions import divergence, log_softmax
from edge_awq.errors import EdgeAwqError
from edge_awq.evaluate.reference import from_halves, to_halves
from edge_awq.evaluate.score import Tally, log_probabilities

EPS = 2.0**-24


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def test_log_probabilities(rng):
    logits = (10 * rng.standard_normal((5, 1000)) + 300).astype(np.float32)
    logits[2, 7] = -np.inf
    exact = special.log_softmax(logits.astype(np.float64), axis=1)
    # a subtraction, exp within 2 ulp and a logarithm, a sum of 1000 terms in float64, and one more subtraction
    bound = 8 * EPS * (1 + np.abs(np.where(np.isinf(exact), 0, exact)))
    found = log_softmax(logits)
    assert found.dtype == np.float32 and found[2, 7] == -np.inf
    with np.errstate(invalid="ignore"):
        assert (np.nan_to_num(np.abs(found - exact)) <= bound).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(value):
    with pytest.raises(EdgeAwqError, match="not finite"):
        log_probabilities(np.array([[0.0, 1.0], [value, 0.0]], np.float32))


def test_divergence_and_agreement(rng):
    p_logits, q_logits = (3 * rng.standard_normal((40, 300)).astype(np.float32) for _ in range(2))
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    exact = stats.entropy(*(special.softmax(logits.astype(np.float64), 1) for logits in (p_logits, q_logits)), axis=1)
    found = divergence(log_p, log_q)
    # each term is off by p times the errors of two logarithms (up to 20 nats) and of p itself
    assert np.abs(found - exact).max() <= 100 * EPS * 20
    targets = rng.integers(0, 300, 40)
    tally = Tally()
    for window, rows in enumerate((slice(0, 10), slice(10, 20), slice(20, 40))):
        tally.add(min(window, 1), targets[rows], log_q[rows], log_p[rows])
    quality = tally.quality()
    nll = -special.log_softmax(q_logits.astype(np.float64), axis=1)[np.arange(40), targets]
    assert quality.tokens == 40 and quality.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-6)
    assert quality.kl_nats == pytest.approx(exact.mean(), rel=1e-5)
    assert quality.kl_p99_nats == pytest.approx(np.quantile(exact, 0.99), rel=1e-5)
    assert quality.top1_agreement == (p_logits.argmax(1) == q_logits.argmax(1)).mean()
    means = [exact[:10].mean(), exact[10:].mean()]  # the second window came in two parts
    assert quality.kl_error_nats == pytest.approx(stats.sem(means), rel=1e-5)
    assert quality.excess_nats == pytest.approx(quality.nll_nats - np.log(quality.reference_perplexity))


def test_one_window_has_no_error(rng):
    tally = Tally()
    tally.add(0, np.array([1, 2]), log_softmax(rng.standard_normal((2, 5)).astype(np.float32)), None)
    quality = tally.quality()
    assert quality.nll_error_nats is None and quality.kl_nats is None


def test_what_has_no_probability_counts_nothing():
    with np.errstate(divide="ignore"):
        log_p, log_q = (np.log(np.array([row], np.float32)) for row in ([0.5, 0.5, 0], [0.25, 0.75, 0]))
    assert divergence(log_p, log_q)[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-6)
    assert divergence(log_q, np.array([[-np.inf, 0, -np.inf]], np.float32))[0] == np.inf


def test_halves_cost_a_mean_divergence_less_than_a_millionth(rng):
    logits = (4 * rng.standard_normal((400, 2000))).astype(np.float32)
    moved = logits + 0.05 * rng.standard_normal(logits.shape).astype(np.float32)
    log_p, log_q = log_softmax(logits), log_softmax(moved)
    stored = from_halves(to_halves(log_p))
    assert np.abs(np.exp(stored).sum(1) - 1).max() < 1e-5
    assert abs(divergence(stored, log_q).mean() - divergence(log_p, log_q).mean()) < 1e-6
    assert to_halves(np.array([-1e6], np.float32))[0] == -np.inf
