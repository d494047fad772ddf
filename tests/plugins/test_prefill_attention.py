"""Prefill attention on the CPU against float64: head sizes, shared heads, tiles, windows, biases, the cache."""

import dataclasses

import numpy as np
import pytest
from attention_harness import HEAD_SIZES, Heads, check_result, prefill, random_step, run
from kernel_harness import SCHEDULES, KernelError, library

ONE_KV_HEAD = Heads(kv=1)


def check(step):
    check_result(step, prefill(step))


@pytest.mark.parametrize("past", [0, 37])
@pytest.mark.parametrize("size", HEAD_SIZES)
def test_head_sizes(rng, size, past):
    """36 rows are more than two warps' and 73 keys more than a tile of any size."""
    check(random_step(rng, Heads(kv=2, size=size, rotary=size), past, tokens=36))


@pytest.mark.parametrize("past", [0, 1, 63, 70])
@pytest.mark.parametrize("tokens", [1, 9, 33, 64, 65, 130])
def test_numbers_of_tokens(rng, tokens, past):
    check(random_step(rng, ONE_KV_HEAD, past, tokens))


@pytest.mark.parametrize(("kv", "share", "tokens"), [(3, 1, 17), (2, 4, 1), (2, 4, 33), (1, 71, 1), (1, 71, 3)])
def test_query_heads_share_a_kv_head(rng, kv, share, tokens):
    """A block's rows begin and end within a token."""
    check(random_step(rng, Heads(kv=kv, share=share), past=37, tokens=tokens))


@pytest.mark.parametrize("rotary", [0, 2, 20, 80])
def test_part_of_a_head_is_rotated(rng, rotary):
    check(random_step(rng, Heads(kv=1, size=80, rotary=rotary), past=5, tokens=9))


@pytest.mark.parametrize("window", [1, 7, 64, 100])
@pytest.mark.parametrize(("past", "tokens"), [(0, 66), (90, 9), (130, 65)])
def test_sliding_window(rng, past, tokens, window):
    check(random_step(rng, Heads(kv=1, window=window), past, tokens))


@pytest.mark.parametrize("heads", [
    Heads(alibi=True, rotary=0, kv=3), Heads(alibi=True, rotary=0, size=112, share=5), Heads(softcap=2.0),
    Heads(softcap=30.0, alibi=True, window=50, share=3), Heads(kv=1, share=71, alibi=True, softcap=1.0),
    Heads(kv=1, size=256, rotary=256, softcap=2.0, alibi=True, window=20),
], ids=["alibi", "alibi-shared", "softcap", "both-with-window", "71-to-1", "wide"])
def test_biased_and_capped_scores(rng, heads):
    check(random_step(rng, heads, past=70, tokens=10 if heads.share < 9 else 1))


def test_large_scores(rng):
    """The softmax is then all but a choice, and exponents far apart."""
    step = random_step(rng, ONE_KV_HEAD, past=100, tokens=20)
    check(dataclasses.replace(step, q=step.q * np.float16(50)))


def test_a_full_cache(rng):
    check(random_step(rng, ONE_KV_HEAD, past=30, tokens=70, capacity=100))


def test_tokens_beyond_the_cache_are_not_written(rng):
    """The runner never asks for it; if it did, memory past the cache would still be safe."""
    step = random_step(rng, Heads(), past=31, tokens=10, capacity=32)
    np.testing.assert_array_equal(prefill(step).key_cache[:, :31], step.key_cache[:, :31])


def test_what_the_window_left_behind_is_not_read(rng):
    step = random_step(rng, Heads(window=20), past=150, tokens=9)
    step.key_cache[:, :131], step.value_cache[:, :131] = np.nan, np.nan
    assert np.isfinite(prefill(step).y).all()


@pytest.mark.parametrize("special", [np.nan, np.inf], ids=str)
def test_non_finite_numbers_stay_in_their_head(rng, special):
    step = random_step(rng, Heads(kv=2, share=2), past=40, tokens=9)
    clean = prefill(step).y
    step.key_cache[1, 7, 3] = special
    y = prefill(step).y
    np.testing.assert_array_equal(y[:, :128], clean[:, :128])
    assert not np.array_equal(y[:, 128:], clean[:, 128:])


def test_queries_keys_and_values_may_be_one_tensor(rng):
    """As the fused projection leaves them."""
    step = random_step(rng, Heads(kv=2, share=2), past=21, tokens=9)
    separate, fused = prefill(step), prefill(step, fused=True)
    for name in ("y", "key_cache", "value_cache"):
        np.testing.assert_array_equal(getattr(fused, name), getattr(separate, name))


def test_the_cache_is_that_of_decoding(rng):
    """Bit for bit, so a prompt may be continued from either."""
    step = random_step(rng, Heads(kv=2, size=96, rotary=48), past=21, tokens=8)
    decoded, prefilled = run(step), prefill(step)
    for name in ("key_cache", "value_cache"):
        np.testing.assert_array_equal(getattr(decoded, name), getattr(prefilled, name))


@pytest.mark.parametrize("size", [64, 256])
def test_same_bits_whatever_the_order_of_threads(rng, size):
    """Nor of blocks, nor of when a copy to shared memory lands."""
    step = random_step(rng, Heads(kv=1, share=2, size=size, rotary=size, window=90), past=70, tokens=33)
    first, *others = (prefill(step, schedule).y.tobytes() for schedule in (*SCHEDULES, SCHEDULES[0]))
    assert all(other == first for other in others)


@pytest.mark.parametrize("size", HEAD_SIZES)
def test_no_bank_conflicts(rng, size):
    """But where eight copies at once end one row and begin the next: at most one for each of 64 keys and values."""
    library().edge_awq_count_conflicts(1)
    try:
        prefill(random_step(rng, Heads(kv=1, size=size, rotary=0), past=9, tokens=9))
    finally:
        library().edge_awq_count_conflicts(0)
    assert library().edge_awq_shared_wavefronts() > 0
    assert library().edge_awq_bank_conflicts() <= (0 if size % 64 == 0 else 2 * 64)


@pytest.mark.parametrize(("heads", "splits", "reason"), [
    (Heads(size=72, rotary=72), 1, "head_size = 72"),
    (Heads(rotary=66), 1, "rotary_size = 66"),
    (Heads(window=-1), 1, "window = -1"),
    (Heads(), 2, "splits = 2"),
    (Heads(softcap=-1.0), 1, "softcap = -1"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refusals_name_the_value(rng, heads, splits, reason):
    with pytest.raises(KernelError, match=reason):
        prefill(random_step(rng, heads, 5, 9), splits=splits)


def test_no_tokens_are_refused(rng):
    with pytest.raises(KernelError, match="tokens = 0"):
        prefill(random_step(rng, Heads(), 5, 0))
