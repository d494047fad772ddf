"""Decode attention on the CPU against float64: head sizes, shared heads, splits, windows, lengths, the cache."""

import dataclasses

import numpy as np
import pytest
from attention_harness import (
    HEAD_SIZES,
    Heads,
    check_result,
    prefill,
    quantized,
    random_step,
    reference,
    run,
    splits_for,
)
from kernel_harness import SCHEDULES, KernelError


def check(step, splits=1):
    check_result(step, run(step, splits))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("size", HEAD_SIZES)
def test_head_sizes(rng, size, splits):
    check(random_step(rng, Heads(size=size, rotary=size, share=3), past=70, tokens=2), splits)


@pytest.mark.parametrize("rotary", [0, 2, 20, 32, 80])
def test_part_of_a_head_is_rotated(rng, rotary):
    check(random_step(rng, Heads(size=80, rotary=rotary), past=33))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("past", [0, 1, 15, 16, 17, 63, 64, 200])
def test_lengths(rng, past, splits):
    """From an empty cache on: splits of no keys, of one, of a ragged tile."""
    check(random_step(rng, Heads(), past), splits)


@pytest.mark.parametrize(("kv", "share", "tokens"), [(8, 1, 1), (2, 4, 1), (1, 8, 1), (1, 9, 1), (1, 17, 1), (1, 71, 1),
                                                     (1, 71, 2), (2, 4, 8), (1, 5, 7)])
def test_query_heads_share_a_kv_head(rng, kv, share, tokens):
    check(random_step(rng, Heads(kv=kv, share=share), past=37, tokens=tokens), splits=2)


@pytest.mark.parametrize("tokens", [1, 5, 8])
@pytest.mark.parametrize("window", [1, 7, 16, 40, 100])
@pytest.mark.parametrize("past", [0, 39, 90])
def test_sliding_window(rng, past, window, tokens):
    check(random_step(rng, Heads(window=window), past, tokens), splits=2)


def test_a_wide_head_with_many_query_rows_is_dealt_to_several_blocks(rng):
    check(random_step(rng, Heads(kv=1, share=5, size=256, rotary=256), past=20, tokens=7), splits=2)


def test_a_full_cache(rng):
    check(random_step(rng, Heads(), past=30, tokens=2, capacity=32), splits=2)


def test_a_token_beyond_the_cache_is_not_written(rng):
    """The runner never asks for it; if it did, memory past the cache would still be safe."""
    step = random_step(rng, Heads(), past=31, tokens=2, capacity=32)
    np.testing.assert_array_equal(run(step).key_cache[:, :31], step.key_cache[:, :31])


@pytest.mark.parametrize("past", [-1, -(2**31), 2**31 - 1, 2**31, 2**40 + 7, -(2**62)])
@pytest.mark.parametrize("stored", [lambda step: step, quantized], ids=["halves", "bytes"])
@pytest.mark.parametrize(("compute", "tokens"), [(run, 2), (prefill, 9)], ids=["decode", "prefill"])
def test_a_length_that_is_none_touches_nothing(rng, compute, tokens, stored, past):
    """As an engine's builder may have it, which measures with whatever its memory holds."""
    step = stored(random_step(rng, Heads(window=20), past=32, tokens=tokens, capacity=32 + tokens))
    result = compute(dataclasses.replace(step, past=past))
    np.testing.assert_array_equal(result.key_cache, step.key_cache)
    np.testing.assert_array_equal(result.value_cache, step.value_cache)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("heads", [
    Heads(alibi=True, rotary=0, kv=3), Heads(alibi=True, rotary=0, size=112, share=5), Heads(softcap=2.0),
    Heads(softcap=30.0, alibi=True, window=50, share=3), Heads(kv=1, share=71, alibi=True, softcap=1.0),
], ids=["alibi", "alibi-shared", "softcap", "both-with-window", "71-to-1"])
def test_biased_and_capped_scores(rng, heads, splits):
    check(random_step(rng, heads, past=150, tokens=3 if heads.share < 9 else 1), splits)


def test_no_slope_is_no_bias(rng, monkeypatch):
    step = random_step(rng, Heads(), past=40)
    monkeypatch.setattr(Heads, "slopes", np.zeros(2, np.float32))
    with_zeros = run(step)
    monkeypatch.setattr(Heads, "slopes", None)
    np.testing.assert_array_equal(with_zeros.y, run(step).y)


def test_a_cap_holds_where_scores_are_infinite(rng):
    """An infinite key scores as much as the cap, as tanh has it, and no NaN arises."""
    step = random_step(rng, Heads(softcap=5.0, rotary=0), past=40)
    step.key_cache[:, 7, 3] = np.inf
    step.q[:] = np.abs(step.q)
    result = run(step)
    y, bound = reference(step, dataclasses.replace(result, key_cache=np.where(
        np.isinf(result.key_cache), np.float16(6e4), result.key_cache)))  # deep in saturation too
    assert (np.abs(result.y - y) <= np.abs(bound) + 2.0**-9).all()


@pytest.mark.parametrize("past", [0, 1, 63, 64, 500])
def test_one_grid_serves_every_length(rng, past):
    """Of 64 splits most have no keys, and leave the workspace and the counters alone."""
    check(random_step(rng, Heads(kv=1, share=2), past), splits=64)


@pytest.mark.parametrize(("heads", "tokens", "multiprocessors", "length", "splits"), [
    (Heads(kv=32, size=128), 1, 132, 2048, 8),      # 256 blocks, of which 264 are resident
    (Heads(kv=32, size=128), 1, 16, 2048, 1),       # the heads alone fill the GPU
    (Heads(kv=8, share=4, size=128), 1, 132, 4096, 32),  # 4 rows: merging weighs more than reading from here on
    (Heads(kv=1, share=71), 1, 132, 2048, 16),
    (Heads(kv=1, size=64), 1, 132, 100, 2),         # two blocks of four warps have all the tiles
    (Heads(kv=1, size=64), 1, 132, 1, 1),
    (Heads(kv=1, size=64), 1, 132, 10**6, 64),
], ids=["llama-h200", "llama-orin", "grouped", "falcon", "short", "one-key", "long"])
def test_splits_fill_the_gpu_once(heads, tokens, multiprocessors, length, splits):
    assert splits_for(heads, tokens, multiprocessors, length) == splits


def test_large_scores(rng):
    """The softmax is then all but a choice, and exponents far apart."""
    step = random_step(rng, Heads(), past=100)
    check(dataclasses.replace(step, q=step.q * np.float16(50)), splits=3)


def test_what_the_window_left_behind_is_not_read(rng):
    step = random_step(rng, Heads(window=20), past=50)
    step.key_cache[:, :31], step.value_cache[:, :31] = np.nan, np.nan
    result = run(step, splits=2)
    assert np.isfinite(result.y).all()


@pytest.mark.parametrize("special", [np.nan, np.inf], ids=str)
def test_non_finite_numbers_stay_in_their_head(rng, special):
    step = random_step(rng, Heads(kv=2, share=2), past=40)
    clean = run(step, splits=2).y
    step.key_cache[1, 7, 3] = special
    y = run(step, splits=2).y
    np.testing.assert_array_equal(y[:, :128], clean[:, :128])
    assert not np.array_equal(y[:, 128:], clean[:, 128:])


def test_queries_keys_and_values_may_be_one_tensor(rng):
    """As the fused projection leaves them."""
    step = random_step(rng, Heads(kv=2, share=2), past=21, tokens=3)
    separate, fused = run(step), run(step, fused=True)
    for name in ("y", "key_cache", "value_cache"):
        np.testing.assert_array_equal(getattr(fused, name), getattr(separate, name))


@pytest.mark.parametrize("splits", [1, 3])
def test_same_bits_whatever_the_order_of_threads(rng, splits):
    step = random_step(rng, Heads(kv=2, share=9), past=150, tokens=2)
    first, *others = (run(step, splits, schedule).y.tobytes() for schedule in (*SCHEDULES, SCHEDULES[0]))
    assert all(other == first for other in others)


@pytest.mark.parametrize(("heads", "tokens", "splits", "reason"), [
    (Heads(size=72, rotary=72), 1, 1, "head_size = 72"),
    (Heads(rotary=66), 1, 1, "rotary_size = 66"),
    (Heads(window=-1), 1, 1, "window = -1"),
    (Heads(), 9, 1, "tokens = 9"),
    (Heads(), 1, 65, "splits = 65"),
    (Heads(softcap=-1.0), 1, 1, "softcap = -1"),
    (Heads(softcap=np.nan), 1, 1, "softcap = -?nan"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refusals_name_the_value(rng, heads, tokens, splits, reason):
    with pytest.raises(KernelError, match=reason):
        run(random_step(rng, heads, 5, tokens), splits)
