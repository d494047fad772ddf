"""Drawing a token on the CPU against edge_awq/runner/sampling.py's filters and numpy's float64.

A kernel's weight exp((x - largest) / T) is off by 2^-22 of it for every unit of its logarithm and 2^-22 more: four
roundings of the exponent in fp32, of 2^-24 each, and the exponential; and it is cut to a multiple of 2^-43. Filters and
draws may differ from float64 only where a sum comes as near to its limit as that.
"""

import ctypes

import numpy as np
import pytest
from kernel_harness import SCHEDULES, KernelError, call, guarded, library, pointer

from edge_awq.engine.trt import reference_sample as reference
from edge_awq.engine.trt.names import SAMPLE_SETTINGS
from edge_awq.runner.sampling import SamplingSettings, sample


class SampleArguments(ctypes.Structure):
    """As in sampling/kernel.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "settings", "seed", "step", "tokens", "lowest", "best",
                                                    "finished")),
        *((name, ctypes.c_int) for name in ("rows", "size", "splits")),
    )


OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def settings_of(settings):
    """float32 [4]; what is not there is off."""
    return np.array([(OFF | settings)[name] for name in SAMPLE_SETTINGS], np.float32)


def run(logits, settings, seed=0, step=0, schedule=0, splits=1):
    """(tokens int64 [rows], lowest uint64 [rows]) of float32 logits [rows, size]."""
    rows, size = logits.shape
    tokens, lowest = guarded(np.full(rows, -7)), guarded(np.full(rows, 7, np.uint64))
    given = [guarded(each) for each in (logits, settings_of(settings), np.array([seed]), np.array([step]))]
    best, finished = guarded(np.zeros((rows, splits), np.uint64)), guarded(np.zeros(rows, np.uint32))
    arrays = (*given, tokens, lowest, best, finished)
    call("edge_awq_sample", SampleArguments(*map(pointer, arrays), rows, size, splits), schedule)
    assert not finished.any()
    return tokens, lowest


def philox(counter, key):
    """The kernels' four words."""
    words = (ctypes.c_uint32 * 8)()  # where vectors may lie: 16 bytes apart
    offset = -ctypes.addressof(words) % 16 // 4
    aligned = (ctypes.c_uint32 * 4).from_buffer(words, 4 * offset)
    aligned[:] = counter
    library().edge_awq_philox(aligned, (ctypes.c_uint32 * 2)(*key), aligned)
    return list(aligned)


def places(logits):
    """uint64 [size]: (key << 32 | index), as sampling/keys.h makes keys."""
    bits = (logits + np.float32(0)).view(np.uint32)
    keys = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    return keys << np.uint64(32) | np.arange(len(logits), dtype=np.uint64)


def filtered(logits, settings):
    """Scores [size] float64, -inf where ruled out."""
    return reference.filtered(logits, settings_of(settings))


def weights_of(scores):
    """(probabilities, how far a sum of them may be off) of scores [size] float64."""
    distance = scores.max() - scores[scores > -np.inf]
    weights = np.exp(scores - scores.max())
    error = (np.exp(-distance) * (1 + distance)).sum() * 2.0**-22 + len(distance) * 2.0**-43
    return weights / weights.sum(), 2 * error / weights.sum()  # of a sum, and of what it is divided by


def assert_drawn(logits, settings, seed=0, step=0, schedule=0):
    """Every row's token and what it was drawn from; rows whose limits are too near for fp32 are counted."""
    tokens, lowest = run(logits, settings, seed, step, schedule)
    near = 0
    for row, (token, place) in enumerate(zip(tokens, lowest, strict=True)):
        kept = filtered(logits[row], settings)
        is_kept = (places(logits[row]) >= place) & (logits[row] > -np.inf)
        np.testing.assert_array_equal(is_kept, kept > -np.inf)
        probabilities, error = weights_of(kept)
        cumulative, u = np.cumsum(probabilities), reference.uniform(seed, step + row)
        expected = reference.draw(logits[row], settings_of(settings), seed, step + row)
        if token != expected:
            assert np.abs(cumulative - u).min() <= error, (row, token, expected)
            near += 1
    return near


@pytest.mark.parametrize(("counter", "key", "words"), [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
], ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_words(counter, key, words):
    """The known answers that come with the authors' Random123 library."""
    assert philox(counter, key) == reference.philox(counter, key) == [int(word, 16) for word in words.split()]


SETTINGS = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 40, "temperature": 1.3},
    "top_1": {"top_k": 1},
    "top_1024": {"top_k": 1024, "temperature": 3.0},
    "top_p": {"top_p": 0.9},
    "top_0": {"top_p": 0.0},
    "top_all_but_a_little": {"top_p": 0.99999, "temperature": 0.5},
    "min_p": {"min_p": 0.05},
    "min_1": {"min_p": 1.0},
    "all": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
    "all_wide": {"temperature": 2.5, "top_k": 900, "top_p": 0.7, "min_p": 0.001},
}


@pytest.mark.parametrize("size", [1, 3, 97, 5003])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_is_kept_and_what_is_drawn(rng, settings, size):
    logits = (3 * rng.standard_normal((2, size))).astype(np.float32)
    assert assert_drawn(logits, settings, seed=size, step=5) == 0  # no limit is that near here


def test_a_real_vocabulary(rng):
    logits = (2.5 * rng.standard_normal((1, 128_257))).astype(np.float32)
    assert assert_drawn(logits, SETTINGS["all"] | {"top_k": 1000}, seed=1) == 0


@pytest.mark.parametrize("settings", [{"top_k": 17}, {"top_p": 0.6}, {"top_p": 0.001}, {"top_k": 30, "top_p": 0.5},
                                      {"min_p": 0.3, "top_p": 0.97}], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ties(rng, settings, schedule):
    """All of the k-th largest stay; of those where top-p ends, the last ones: so does the reference."""
    logits = rng.integers(-3, 3, (2, 700)).astype(np.float32)
    assert_drawn(logits, settings, schedule=schedule)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_logit_the_same(settings):
    """More than fit the list of candidates."""
    if settings.get("top_p"):  # sums of thousands of equal numbers end exactly at the limit, or a rounding beside it
        settings = settings | {"top_p": settings["top_p"] - 2e-5}
    assert_drawn(np.full((1, 5003), -2.5, np.float32), settings)


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_p": 0.99999, "top_k": 900},
                                      {"min_p": 0.1}], ids=str)
def test_excluded_tokens_are_never_drawn(rng, settings):
    logits = rng.standard_normal((3, 1000)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.5] = -np.inf
    logits[0, 4:] = -np.inf  # fewer than k are left
    logits[1, :999], logits[1, 999] = -np.inf, 0  # one is
    assert assert_drawn(logits, settings, step=9) == 0
    assert run(logits, settings)[0][1] == 999


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.999}, {"top_k": 100, "temperature": 60.0}], ids=str)
def test_logits_far_from_the_largest(rng, settings):
    """Beyond the bins of 1/64, and beyond what a weight can be."""
    logits = np.repeat(np.float32(-50) * np.arange(1, 150, dtype=np.float32), 2)
    assert_drawn(rng.permutation(logits)[None], settings)
    assert_drawn(np.array([[3.4e38, -3.4e38, 1e38, 0, -1e-40]], np.float32), settings)


def test_zeros_of_both_signs_are_equal():
    logits = np.array([[0.0, -0.0, -1.0, 0.0]], np.float32)
    assert_drawn(logits, {"top_k": 1})


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, 1e-38])
def test_no_temperature_is_greedy(rng, temperature):
    """The first of equals."""
    logits = rng.integers(-3, 3, (3, 300)).astype(np.float32)
    tokens, lowest = run(logits, {"temperature": temperature, "top_k": 5})
    np.testing.assert_array_equal(tokens, logits.argmax(1))
    assert tokens[0] == sample(logits[0], SamplingSettings(temperature=0), np.zeros(300, bool), None)
    assert (lowest == 7).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-29])
def test_low_temperatures_are_nearly_greedy(rng, temperature):
    logits = rng.standard_normal((2, 300)).astype(np.float32)
    for settings in ({}, {"top_k": 9}, {"top_p": 0.9}):
        np.testing.assert_array_equal(run(logits, settings | {"temperature": temperature})[0], logits.argmax(1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_logits_that_are_no_numbers_are_flagged(value, temperature):
    """As GreedyToken's are; another row is none the worse."""
    logits = np.zeros((2, 200), np.float32)
    logits[0, 77] = value
    logits[1, 5] = 60
    assert run(logits, {"temperature": temperature, "top_p": 0.5})[0].tolist() == [2**32 + 77, 5]


def test_a_row_that_leaves_no_token_is_flagged():
    assert run(np.full((1, 40), -np.inf, np.float32), {"top_k": 3})[0] == [2**32]


@pytest.mark.parametrize("settings", [
    {"top_k": np.nan, "top_p": np.nan, "min_p": np.nan}, {"top_k": -3, "top_p": 2, "min_p": -1}, {"top_k": np.inf},
    {"top_k": 0.5}], ids=str)
def test_settings_out_of_range_are_off(rng, settings):
    logits = rng.standard_normal((1, 64)).astype(np.float32)
    tokens, lowest = run(logits, settings)
    expected = run(logits, {})
    assert tokens == expected[0] and lowest == expected[1] == 0x00800000 << 32


def test_frequencies(rng):
    """400 successive steps: each count within five standard deviations."""
    logits, steps = np.array([0.0, 1.0, -1.0, 2.0, -np.inf, 0.5], np.float32), 400
    tokens = np.concatenate([run(np.tile(logits, (100, 1)), {"temperature": 0.9}, seed=3, step=first)[0]
                             for first in range(0, steps, 100)])
    probabilities, _ = weights_of(logits.astype(np.float64) / 0.9)
    counts = np.bincount(tokens, minlength=6)
    assert (np.abs(counts - steps * probabilities) <= 5 * np.sqrt(steps * probabilities * (1 - probabilities))).all()


def test_rows_are_successive_steps_and_nothing_else_matters(rng):
    logits = np.tile((2 * rng.standard_normal(500)).astype(np.float32), (6, 1))
    settings, seed, step = {"top_k": 100, "top_p": 0.95}, 2**40 + 1, 2**32 - 3  # the count passes into the next word
    together = run(logits, settings, seed, step)[0]
    one_by_one = [int(run(logits[:1], settings, seed, step + i, 12345)[0][0]) for i in range(6)]
    assert together.tolist() == one_by_one and len(set(one_by_one)) > 2
    assert together.tolist() != run(logits, settings, seed + 2**32, step)[0].tolist()


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_rows_may_start_anywhere(rng, offset):
    """Rows of an odd size are not aligned to vectors; here even the first is not."""
    storage = guarded(np.zeros(offset + 4 + 90, np.float32))
    misaligned = -storage.ctypes.data // 4 % 4 + offset
    logits = storage[misaligned : misaligned + 90]
    logits[:] = rng.standard_normal(90)
    tokens, best, finished = np.full(1, -7), np.zeros(1, np.uint64), np.zeros(1, np.uint32)
    arrays = (logits, settings_of({"top_k": 7}), np.array([4]), np.array([2]), tokens, None, best, finished)
    call("edge_awq_sample", SampleArguments(*map(pointer, arrays), 1, 90, 1))
    assert tokens == run(logits[None].copy(), {"top_k": 7}, 4, 2)[0]


@pytest.mark.parametrize(("rows", "size", "splits", "reason"), [
    (0, 5, 1, "rows = 0"), (1, 0, 1, "size = 0"), (1, 2**20 + 1, 1, "size = 1048577, not 1 to 1048576"),
    (1, 5, 0, "splits = 0, not 1 to 1024"), (1, 5, 1025, "splits = 1025")])
def test_refusals_name_the_value(rows, size, splits, reason):
    with pytest.raises(KernelError, match=reason):
        call("edge_awq_sample", SampleArguments(*[16] * 8, rows, size, splits))


@pytest.mark.parametrize("missing", [i for i in range(8) if i != 5])
def test_a_missing_tensor_is_refused(missing):
    with pytest.raises(KernelError, match="a tensor is null"):
        call("edge_awq_sample", SampleArguments(*[None if i in (missing, 5) else 16 for i in range(8)], 1, 5, 1))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("splits", [2, 7])
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 40, "top_p": 0.9}], ids=["greedy", "drawn"])
def test_blocks_of_a_row(rng, settings, splits, schedule):
    """They find the largest together; the token is that of one block."""
    logits = rng.integers(-20, 20, (3, 1501)).astype(np.float32)  # with equals
    logits[1, 1400] = np.nan
    found, alone = (run(logits, settings, 5, 9, schedule, count) for count in (splits, 1))
    np.testing.assert_array_equal(found, alone)
    assert found[0][1] == 1400 + reference.FINITE
    assert "temperature" not in settings or found[0][0] == logits[0].argmax()


def test_the_bounds_are_small():
    """They could hide no wrong sum of a real row."""
    assert weights_of(np.random.default_rng(1).standard_normal(128_000) * 2.5)[1] < 1e-5
