"""Sampling against the logits processors of transformers, the oracle, and against exact probabilities."""

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import chisquare

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.sampling import (
    Sampler,
    SamplingSettings,
    min_p_ids,
    penalize,
    sample,
    top_k_ids,
    top_p_ids,
)

SIZE = 401  # no power of two divides it
NOTHING_SEEN = np.zeros(SIZE, dtype=bool)


def scores_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3.0, size=SIZE)


def kept(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The scores with all but these at -inf, as transformers has them."""
    filtered = np.full_like(scores, -np.inf)
    filtered[ids] = scores[ids]
    return filtered


def oracle(processor: transformers.LogitsProcessor, scores: np.ndarray, ids: tuple[int, ...] = (0,)) -> np.ndarray:
    """The same in float64, so that both sides round alike and the comparison can be exact."""
    return processor(torch.tensor([ids]), torch.from_numpy(scores)[None].clone())[0].numpy()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_k", [1, 2, 50, SIZE - 1, SIZE, 10 * SIZE])
def test_top_k_keeps_what_transformers_keeps(top_k, seed):
    scores = scores_of(seed)
    assert np.array_equal(kept(scores, top_k_ids(scores, top_k)), oracle(transformers.TopKLogitsWarper(top_k), scores))


def test_top_k_keeps_ties_like_transformers():
    scores = np.array([1.0, 3.0, 2.0, 2.0, 2.0, -1.0])
    assert np.array_equal(kept(scores, top_k_ids(scores, 2)), oracle(transformers.TopKLogitsWarper(2), scores))


def test_top_k_of_few_that_are_possible():
    scores = np.array([-np.inf, 1.0, -np.inf, 0.0])
    for top_k in (1, 2, 3, 4, 9):
        assert set(top_k_ids(scores, top_k)) == {1, 3} - ({3} if top_k == 1 else set())


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("top_k", [1, 40, 50000])
def test_top_k_of_a_large_vocabulary_equals_transformers(scale, top_k):
    scores = np.random.default_rng(2).normal(scale=scale, size=50257).astype(np.float32)
    assert np.array_equal(kept(scores, top_k_ids(scores, top_k)), oracle(transformers.TopKLogitsWarper(top_k), scores))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_p", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(top_p, seed):
    scores = scores_of(seed)
    assert np.array_equal(kept(scores, top_p_ids(scores, top_p)), oracle(transformers.TopPLogitsWarper(top_p), scores))


def test_top_p_keeps_ties_like_transformers():
    for scores in (np.zeros(8), np.array([0.0, 3.0, 1.0, 3.0, 1.0, 1.0])):
        for top_p in (0.1, 0.3, 0.55, 0.95):
            expected = oracle(transformers.TopPLogitsWarper(top_p), scores)
            assert np.array_equal(kept(scores, top_p_ids(scores, top_p)), expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("top_p", [0.5, 0.999999])
def test_top_p_of_a_large_vocabulary_equals_transformers(scale, top_p):
    scores = np.random.default_rng(1).normal(scale=scale, size=50257)
    assert np.array_equal(kept(scores, top_p_ids(scores, top_p)), oracle(transformers.TopPLogitsWarper(top_p), scores))


@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_top_p_after_top_k_equals_transformers(top_p):
    scores = scores_of(7)
    scores = kept(scores, top_k_ids(scores, 20))
    assert np.array_equal(kept(scores, top_p_ids(scores, top_p)), oracle(transformers.TopPLogitsWarper(top_p), scores))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p, seed):
    scores = scores_of(seed)
    assert np.array_equal(kept(scores, min_p_ids(scores, min_p)), oracle(transformers.MinPLogitsWarper(min_p), scores))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
def test_repetition_penalty_equals_transformers(penalty):
    scores, ids = scores_of(3), (5, 7, 7, 400)
    seen = NOTHING_SEEN.copy()
    seen[list(ids)] = True
    expected = oracle(transformers.RepetitionPenaltyLogitsProcessor(penalty), scores, ids)
    assert np.array_equal(penalize(scores, seen, penalty), expected)


@pytest.mark.parametrize("settings", [
    SamplingSettings(temperature=0.7, top_k=12, top_p=0.8, min_p=0.05, repetition_penalty=1.5),
    SamplingSettings(temperature=2.0, min_p=0.1),
    SamplingSettings(top_k=3),
], ids=["all", "hot", "few"])
def test_draws_follow_the_probabilities_of_transformers(settings):
    """All settings together, in transformers' order; chi-square over 20000 draws, rejected once in 10000 right runs."""
    scores, ids = scores_of(11).astype(np.float32), (int(scores_of(11).argmax()), 5)
    processors = [transformers.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty),
                  transformers.TemperatureLogitsWarper(settings.temperature)]
    processors += [transformers.TopKLogitsWarper(settings.top_k)] if settings.top_k else []
    processors += [transformers.TopPLogitsWarper(settings.top_p), transformers.MinPLogitsWarper(settings.min_p)]
    expected = torch.from_numpy(scores)[None].double()
    for processor in processors:
        expected = processor(torch.tensor([ids]), expected)
    probabilities = expected.softmax(-1)[0].numpy()
    seen = NOTHING_SEEN.copy()
    seen[list(ids)] = True
    random = np.random.default_rng(0)
    draws = 20000
    counts = np.bincount([sample(scores, settings, seen, random) for _ in range(draws)], minlength=SIZE)
    assert not counts[probabilities == 0].any()
    common = probabilities * draws >= 5  # the test's own condition; the rare rest is counted as one
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*(probabilities[common] * draws), probabilities[~common].sum() * draws]
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], np.array(wanted[:-1]) * (sum(observed[:-1]) / sum(wanted[:-1]))
    assert chisquare(observed, wanted).pvalue > 1e-4


def test_draws_from_a_whole_vocabulary_follow_their_probabilities():
    """Blocks of tokens, the last one ragged, with impossible tokens at both ends and in between; as above."""
    size, draws = 1234, 40000
    scores = np.random.default_rng(5).normal(size=size).astype(np.float32)
    scores[:3] = scores[500:1100] = scores[-3:] = -np.inf
    random, seen = np.random.default_rng(1), np.zeros(size, bool)
    counts = np.bincount([sample(scores, SamplingSettings(), seen, random) for _ in range(draws)], minlength=size)
    possible = scores > -np.inf
    expected = torch.from_numpy(scores).double().softmax(-1).numpy() * draws
    assert not counts[~possible].any()
    common = possible & (expected >= 5)
    observed, wanted = [*counts[common], counts[~common].sum()], [*expected[common], expected[~common].sum()]
    assert chisquare(observed, wanted).pvalue > 1e-4


def test_greedy_is_the_most_probable_token_and_obeys_the_penalty():
    logits = np.array([0.0, 3.0, 2.9, -1.0], dtype=np.float32)
    seen = np.array([False, True, False, False])
    random = np.random.default_rng(0)
    assert sample(logits, SamplingSettings(temperature=0), seen, random) == 1
    assert sample(logits, SamplingSettings(temperature=0, repetition_penalty=1.2), seen, random) == 2


def test_same_seed_draws_the_same_tokens_and_another_does_not():
    logits = np.zeros(SIZE, dtype=np.float32)

    def drawn(seed):
        sampler = Sampler(SamplingSettings(seed=seed), SIZE)
        return [sampler.draw(logits) for _ in range(20)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)


def test_a_sampler_penalizes_prompt_and_its_own_tokens():
    sampler = Sampler(SamplingSettings(temperature=0, repetition_penalty=10.0), 3)
    sampler.see([2])
    logits = np.array([1.0, 1.1, 5.0], dtype=np.float32)
    assert [sampler.draw(logits) for _ in range(3)] == [1, 0, 2]


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-3, 1e30])
def test_extreme_temperatures_stay_finite(temperature):
    token = sample(np.array([1.0, 900.0, -900.0], np.float32), SamplingSettings(temperature=temperature, seed=0),
                   np.zeros(3, bool), np.random.default_rng(0))
    assert token == 1 or temperature > 1


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0]], ids=["nan", "none", "inf"])
def test_logits_that_are_no_numbers_are_refused(logits):
    with pytest.raises(EdgeAwqError, match="not finite"):
        sample(np.array(logits, np.float32), SamplingSettings(), np.zeros(2, bool), np.random.default_rng(0))


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -0.1), ("temperature", float("nan")), ("temperature", "hot"), ("temperature", True),
    ("top_k", -1), ("top_k", 1.5), ("top_p", -0.1), ("top_p", 1.1), ("min_p", 2), ("min_p", None),
    ("repetition_penalty", 0), ("repetition_penalty", float("inf")), ("repetition_penalty", 1e-320),
    ("repetition_penalty", 1e308), ("seed", -1), ("seed", 0.5),
])
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(EdgeAwqError, match=name) as caught:
        SamplingSettings(**{name: value})
    assert repr(value) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "seed"])
def test_whole_numbers_that_no_float_holds_are_refused(name):
    with pytest.raises(EdgeAwqError, match=f"{name} = 1000") as caught:
        SamplingSettings(**{name: 10**400})
    assert len(caught.value.message) < 200


def test_generation_config_decides_the_defaults():
    table = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "eos_token_id": 2}
    assert SamplingSettings.from_generation_config(table) == SamplingSettings(temperature=0.6, top_p=0.9)
    assert SamplingSettings.from_generation_config({"temperature": 0.6}).temperature == 0
    assert SamplingSettings.from_generation_config({}).temperature == 0
