"""Attention over a cache of bytes with a scale per head and token, on the CPU against float64: decoding and prefill."""

import dataclasses

import numpy as np
import pytest
from attention_harness import (
    HEAD_SIZES,
    Attention,
    Heads,
    check_result,
    dequantized,
    prefill,
    quantized,
    random_step,
    reference,
    run,
    splits_for,
)
from kernel_harness import HALF_ROUNDOFF, SCHEDULES, KernelError, library

both = pytest.mark.parametrize("compute", [run, prefill], ids=["decode", "prefill"])


def byte_step(rng, heads, past, tokens=1, capacity=None):
    return quantized(random_step(rng, heads, past, tokens, capacity))


def check(step, compute=run, **options):
    check_result(step, compute(step, **options))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("size", HEAD_SIZES)
def test_head_sizes(rng, size, splits):
    check(byte_step(rng, Heads(size=size, rotary=size, share=3), past=70, tokens=2), splits=splits)


@pytest.mark.parametrize("past", [0, 37])
@pytest.mark.parametrize("size", HEAD_SIZES)
def test_head_sizes_of_a_prompt(rng, size, past):
    """36 rows are more than two warps' and 73 keys more than a tile of any size."""
    check(byte_step(rng, Heads(kv=2, size=size, rotary=size), past, tokens=36), prefill)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("past", [0, 1, 15, 16, 17, 63, 64, 200])
def test_lengths(rng, past, splits):
    """From an empty cache on: splits of no keys, of one, of a ragged tile."""
    check(byte_step(rng, Heads(size=80, rotary=20), past), splits=splits)


@pytest.mark.parametrize("past", [0, 1, 63, 70])
@pytest.mark.parametrize("tokens", [1, 9, 64, 130])
def test_numbers_of_tokens(rng, tokens, past):
    check(byte_step(rng, Heads(kv=1), past, tokens), prefill)


@both
@pytest.mark.parametrize(("kv", "share", "tokens"), [(8, 1, 1), (2, 4, 1), (1, 9, 1), (1, 71, 1), (1, 71, 2),
                                                     (1, 5, 7)])
def test_query_heads_share_a_kv_head(rng, compute, kv, share, tokens):
    check(byte_step(rng, Heads(kv=kv, share=share), past=37, tokens=tokens), compute)


@both
@pytest.mark.parametrize("window", [1, 7, 16, 40, 100])
@pytest.mark.parametrize("past", [0, 39, 91])
def test_sliding_window(rng, compute, past, window):
    """Keys at odd places, too."""
    check(byte_step(rng, Heads(window=window), past, tokens=5), compute)


@both
@pytest.mark.parametrize("heads", [
    Heads(alibi=True, rotary=0, kv=3), Heads(alibi=True, rotary=0, size=112, share=5), Heads(softcap=2.0),
    Heads(softcap=30.0, alibi=True, window=50, share=3), Heads(kv=1, share=71, alibi=True, softcap=1.0),
    Heads(kv=1, size=256, rotary=256, softcap=2.0, alibi=True, window=20),
], ids=["alibi", "alibi-shared", "softcap", "both-with-window", "71-to-1", "wide"])
def test_biased_and_capped_scores(rng, compute, heads):
    check(byte_step(rng, heads, past=70, tokens=3 if heads.share < 9 else 1), compute)


@both
def test_large_scores(rng, compute):
    """The softmax is then all but a choice, and exponents far apart."""
    step = byte_step(rng, Heads(kv=1), past=100, tokens=8)
    check(dataclasses.replace(step, q=step.q * np.float16(50)), compute)


@both
@pytest.mark.parametrize("factor", [2.0**-14, 2.0**13], ids=["small", "large"])
def test_values_of_any_size(rng, compute, factor):
    """From fp16's smallest normal numbers to its largest, whose scales are 2^-21 and 512."""
    step = random_step(rng, Heads(kv=1, share=2), past=40, tokens=2)
    scaled = {name: (getattr(step, name) * factor).clip(-65504, 65504).astype(np.float16)
              for name in ("v", "value_cache")}
    check(quantized(dataclasses.replace(step, **scaled)), compute)


@both
def test_a_full_cache(rng, compute):
    check(byte_step(rng, Heads(), past=30, tokens=2, capacity=32), compute)


@both
def test_tokens_beyond_the_cache_are_not_written(rng, compute):
    """The runner never asks for it; if it did, memory past the cache would still be safe."""
    step = byte_step(rng, Heads(), past=31, tokens=8, capacity=32)
    result = compute(step)
    for name in ("key_cache", "key_scales"):
        np.testing.assert_array_equal(getattr(result, name)[:, :31], getattr(step, name)[:, :31])


@both
def test_what_the_window_left_behind_is_not_read(rng, compute):
    step = byte_step(rng, Heads(window=20), past=150, tokens=8)
    step.key_scales[:, :131], step.value_scales[:, :131] = np.nan, np.nan
    assert np.isfinite(compute(step).y).all()


@pytest.mark.parametrize("past", [0, 1, 63, 64, 500])
def test_one_grid_serves_every_length(rng, past):
    check(byte_step(rng, Heads(kv=1, share=2), past), splits=64)


@both
@pytest.mark.parametrize("tensor", ["k", "v"])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_numbers_stay_in_their_head(rng, compute, special, tensor):
    """They make the scale NaN, so a whole row of the cache is lost."""
    step = byte_step(rng, Heads(kv=2, share=2, rotary=0), past=40, tokens=2)
    clean = compute(step)
    getattr(step, tensor)[1, 64 + 3] = special
    result = compute(step)
    name = {"k": "key_scales", "v": "value_scales"}[tensor]
    lost = np.isnan(getattr(result, name)[:, :42])
    assert lost[1, 41] and lost.sum() == 1
    np.testing.assert_array_equal(result.y[:, :128], clean.y[:, :128])
    assert not np.isfinite(result.y[1, 128:]).any()


@both
def test_zeros_are_zeros(rng, compute):
    step = byte_step(rng, Heads(kv=1), past=0, tokens=3)
    step.k[:], step.v[:] = 0, 0
    result = compute(step)
    assert not result.y.any() and not result.key_scales[:, :3].any() and (result.value_cache[:, :3] == 128).all()


@both
def test_queries_keys_and_values_may_be_one_tensor(rng, compute):
    """As the fused projection leaves them."""
    step = byte_step(rng, Heads(kv=2, share=2), past=21, tokens=8)
    separate, fused = compute(step), compute(step, fused=True)
    for field in dataclasses.fields(separate):
        np.testing.assert_array_equal(getattr(fused, field.name), getattr(separate, field.name))


@pytest.mark.parametrize("size", [96, 256])
def test_the_cache_of_a_prompt_is_that_of_decoding(rng, size):
    """Bit for bit, so a prompt may be continued from either."""
    step = byte_step(rng, Heads(kv=2, size=size, rotary=48), past=21, tokens=8)
    decoded, prefilled = run(step), prefill(step)
    for name in ("key_cache", "value_cache", "key_scales", "value_scales"):
        np.testing.assert_array_equal(getattr(decoded, name), getattr(prefilled, name))


@both
@pytest.mark.parametrize("size", [64, 256])
def test_same_bits_whatever_the_order_of_threads(rng, compute, size):
    """Nor of blocks, nor of when a copy to shared memory lands."""
    step = byte_step(rng, Heads(kv=1, share=5, size=size, rotary=size, window=90), past=70, tokens=8)
    first, *others = (compute(step, schedule=schedule).y.tobytes() for schedule in (*SCHEDULES, SCHEDULES[0]))
    assert all(other == first for other in others)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_no_bank_conflicts(rng, size):
    """Neither where bytes land, nor where halves of them go; nor of the scales.

    In the other sizes some lanes sit out, for whom the count is not made; the rest have the same addresses.
    """
    library().edge_awq_count_conflicts(1)
    try:
        prefill(byte_step(rng, Heads(kv=1, size=size, rotary=0), past=9, tokens=9))
    finally:
        library().edge_awq_count_conflicts(0)
    assert library().edge_awq_shared_wavefronts() > 0
    assert library().edge_awq_bank_conflicts() == 0


def quantization_errors(step, found):
    """(largest, typical) errors of y where keys and values are off by half a scale at most, evenly spread.

    A key's error e moves a score by scale * q . e, a weight by that factor less the mean of all, and y by the weight
    times the value's distance from y; a value's error moves y by the weight times it. At most the errors add up, to
    first order and a factor exp(2 moved); typically, with a variance of scale^2 / 12 each and independent, their
    variances do. New keys are rounded from fp32 here, from fp16 in the reference: 2^-11 of them more.
    """
    q, weights, scale = found.q, found.weights, step.heads.scale
    key_scale, value_scale = (np.abs(each).max(-1) / 127 for each in (found.keys, found.values))
    most = 0.5 * key_scale[:, None] * scale * np.abs(q).sum(-1, keepdims=True)
    most += HALF_ROUNDOFF * scale * np.abs(q) @ np.abs(found.keys).transpose(0, 2, 1)
    moved = most.max(-1, keepdims=True)
    largest = np.exp(2 * moved) * (weights @ value_scale[..., None] / 2) + np.expm1(2 * moved) * found.spread
    distance = found.values[:, None] - found.y[:, :, None]
    key_variance = key_scale[:, None] ** 2 / 12 * scale**2 * (q**2).sum(-1, keepdims=True)
    variance = np.einsum("htk,htkd->htd", weights**2 * key_variance, distance**2)
    variance += weights**2 @ (value_scale**2 / 12)[..., None]
    return tuple(each.transpose(1, 0, 2).reshape(len(q[0]), -1) for each in (largest, np.sqrt(variance)))


@both
@pytest.mark.parametrize("heads", [Heads(kv=2, share=4), Heads(kv=2, share=2, size=128, rotary=128),
                                   Heads(kv=1, share=71)], ids=["64", "128", "71-to-1"])
def test_error_of_quantization(rng, compute, heads):
    """Against the cache that was not quantized: never more than the bound, and in the mean what noise would do."""
    exact = random_step(rng, heads, past=200, tokens=4)
    step = quantized(exact)
    result, wide = compute(step), compute(exact)
    found = Attention.of(exact, wide.keys, wide.values)
    y = found.y.transpose(1, 0, 2).reshape(result.y.shape)
    largest, typical = quantization_errors(exact, found)
    off = np.abs(result.y - y)
    assert (off <= largest + reference(step, result)[1]).all()
    ratio = np.linalg.norm(off) / np.linalg.norm(typical)
    assert 0.8 < ratio < 1.25, ratio  # thousands of outputs; fp16 adds little
    assert np.linalg.norm(off) < 0.02 * np.linalg.norm(y)


@pytest.mark.parametrize(("heads", "splits"), [
    (Heads(kv=32, size=128), 8), (Heads(kv=8, share=4, size=128), 22), (Heads(kv=1, share=71), 11)])
def test_splits_weigh_partial_results_against_half_the_bytes(heads, splits):
    """Of 2048 or 4096 positions on 132 multiprocessors; as many as for fp16, or fewer by the root of two."""
    assert splits_for(heads, 1, 132, 4096 if heads.share == 4 else 2048, kv_bits=8) == splits


@both
@pytest.mark.parametrize(("changes", "reason"), [
    ({"key_scales": None}, "kv_bits = 8 without scales"), ({"value_scales": None}, "kv_bits = 8 without scales"),
    ({"key_cache": np.zeros((2, 9, 64), np.int32)}, "kv_bits = 32, not 16 or 8")],
    ids=["keys", "values", "bits"])
def test_refusals_name_the_value(rng, compute, changes, reason):
    with pytest.raises(KernelError, match=reason):
        compute(dataclasses.replace(byte_step(rng, Heads(), 5), **changes))


def test_quantizing_here_is_what_kernels_do(rng):
    """The oracle of these tests and the kernels choose the same bytes, but where a quotient is all but half-way."""
    new = random_step(rng, Heads(kv=2, rotary=0), past=0, tokens=200, capacity=200)
    rows = {name: getattr(new, name[0]).reshape(200, 2, 64).transpose(1, 0, 2) for name in ("key_cache", "value_cache")}
    expected, result = quantized(dataclasses.replace(new, **rows)), prefill(quantized(new))
    for name in ("key", "value"):
        found, wanted = (getattr(each, f"{name}_cache").astype(int) for each in (result, expected))
        assert np.mean(found != wanted) < 1e-3 and np.abs(found - wanted).max() <= 1
        scales = (getattr(each, f"{name}_scales") for each in (result, expected))
        np.testing.assert_allclose(*scales, rtol=2.0**-22)
    assert dequantized(result.key_cache, result.key_scales).max() > 3
