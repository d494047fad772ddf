"""Attention on the CPU: the kernels by ctypes, and the same in float64."""

from __future__ import annotations

import ctypes
import dataclasses
from dataclasses import dataclass

import numpy as np
from kernel_harness import HALF_ROUNDOFF, HALF_SMALLEST, UNIT_ROUNDOFF, call, guarded, library, pointer, poisoned

HEAD_SIZES = (64, 80, 96, 112, 128, 256)


class DecodeAttentionArguments(ctypes.Structure):
    """As in attention/kernel.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "q", "k", "v", "key_cache", "value_cache", "past_length", "cosines", "sines", "slopes", "y", "partial",
            "finished")),
        *((name, ctypes.c_int) for name in (
            "tokens", "num_heads", "kv_num_heads", "head_size", "rotary_size", "capacity", "q_stride", "kv_stride",
            "window", "splits")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
        ("kv_bits", ctypes.c_int),
    )


@dataclass(frozen=True)
class Heads:
    """The shape of an attention.

    Attributes:
        kv: KV heads; share: query heads of each; size: values of a head; rotary: of which so many are rotated.
        window: positions a query sees, itself included; 0: all.
        softcap: scores are between its negative and it; 0: as they are. alibi: scores fall with the distance.
    """

    kv: int = 2
    share: int = 1
    size: int = 64
    rotary: int = 64
    window: int = 0
    softcap: float = 0.0
    alibi: bool = False

    @property
    def slopes(self) -> np.ndarray | None:
        """float32 [heads], from 1/2 down to 1/256 as in Press et al. 2022; another for each head."""
        heads = self.kv * self.share
        return (2.0 ** np.linspace(-1, -8, heads)).astype(np.float32) if self.alibi else None

    @property
    def op_slopes(self) -> np.ndarray:
        """As the op takes them: zeros where there is no ALiBi."""
        return np.zeros(self.kv * self.share, np.float32) if self.slopes is None else self.slopes

    @property
    def scale(self) -> float:
        return self.size**-0.5


@dataclass(frozen=True)
class Step:
    """Tensors of one step, as they are before it.

    Attributes:
        q: float16 [tokens, heads * size]; k, v: float16 [tokens, kv heads * size].
        key_cache, value_cache: float16 [kv heads, capacity, size]; rows from ``past`` on hold NaNs.
        cosines, sines: float32 [capacity, rotary / 2].
        key_scales, value_scales: float32 [kv heads, capacity] where the caches are uint8, 128 + x / scale; see
            quantized().
    """

    heads: Heads
    past: int
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    key_cache: np.ndarray
    value_cache: np.ndarray
    cosines: np.ndarray
    sines: np.ndarray
    key_scales: np.ndarray | None = None
    value_scales: np.ndarray | None = None

    @property
    def kv_bits(self) -> int:
        return 8 * self.key_cache.itemsize


@dataclass(frozen=True)
class Result:
    """y: float16 [tokens, heads * size]; the caches after the step."""

    y: np.ndarray
    key_cache: np.ndarray
    value_cache: np.ndarray
    key_scales: np.ndarray | None = None
    value_scales: np.ndarray | None = None

    @property
    def keys(self) -> np.ndarray:
        """What the cache means, float64."""
        return dequantized(self.key_cache, self.key_scales)

    @property
    def values(self) -> np.ndarray:
        """The same."""
        return dequantized(self.value_cache, self.value_scales)


def dequantized(cache: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """The numbers in a cache of either kind, float64."""
    if scales is None:
        return cache.astype(np.float64)
    return (cache.astype(np.float64) - 128) * scales[..., None].astype(np.float64)


def quantized(step: Step) -> Step:
    """The same step over a cache of bytes: scale = max |x| / 127 per head and token; where NaNs were, NaN scales."""
    caches, scales = [], []
    for cache in (step.key_cache, step.value_cache):
        scale = (np.abs(cache.astype(np.float32)).max(-1) / 127).astype(np.float32)
        ratio = cache / np.where(scale > 0, scale, 1)[..., None].astype(np.float64)
        caches.append((128 + np.nan_to_num(np.rint(ratio), nan=127)).astype(np.uint8))
        scales.append(scale)
    return dataclasses.replace(step, key_cache=caches[0], value_cache=caches[1], key_scales=scales[0],
                               value_scales=scales[1])


def random_step(rng: np.random.Generator, heads: Heads, past: int, tokens: int = 1,
                capacity: int | None = None) -> Step:
    """Normal values; rotary tables of random angles, so that a wrong position shows."""
    capacity = capacity or past + tokens + 3
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float16)  # noqa: E731
    keys, values = (normal(heads.kv, capacity, heads.size) for _ in range(2))
    keys[:, past:] = values[:, past:] = np.nan
    angles = rng.uniform(0, 2 * np.pi, (capacity, heads.rotary // 2))
    new = [normal(tokens, count * heads.size) for count in (heads.kv * heads.share, heads.kv, heads.kv)]
    return Step(heads, past, *new, keys, values, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


def run(step: Step, splits: int = 1, schedule: int = 0, fused: bool = False) -> Result:
    """By the decode kernel, with q, k and v as tensors of their own, or fused into one [tokens, q | k | v].

    The workspace is poisoned; the counters must be zero again.
    """
    arguments, result, _tensors = _prepared(step, splits, fused)
    floats, counters = (getattr(library(), f"edge_awq_decode_attention_{what}")(ctypes.byref(arguments))
                        for what in ("partial_floats", "counters"))
    partial, finished = guarded(np.full(floats, np.nan, np.float32)), guarded(np.zeros(counters, np.uint32))
    arguments.partial, arguments.finished = pointer(partial), pointer(finished)
    call("edge_awq_decode_attention", arguments, schedule)
    assert not finished.any()
    return result


def prefill(step: Step, schedule: int = 0, fused: bool = False, splits: int = 1) -> Result:
    """By the two kernels of prefill; q, k and v as for run()."""
    arguments, result, _tensors = _prepared(step, splits, fused)
    call("edge_awq_append_kv", arguments, schedule)
    call("edge_awq_prefill_attention", arguments, schedule)
    return result


def _prepared(step: Step, splits: int, fused: bool) -> tuple[DecodeAttentionArguments, Result, list[np.ndarray | None]]:
    """A launch's arguments, what it will write, and the tensors that must live until it has."""
    heads, tokens = step.heads, len(step.q)
    y = poisoned(*step.q.shape)
    new = [guarded(each) for each in (step.q, step.k, step.v)]
    if fused:
        joined = guarded(np.concatenate(new, axis=1))
        new = np.split(joined, np.cumsum([each.shape[1] for each in new[:2]]), axis=1)
    caches = [None if each is None else guarded(each) for each in
              (step.key_cache, step.value_cache, step.key_scales, step.value_scales)]
    tables = [guarded(np.array([step.past])),
              *(guarded(each) if heads.rotary else None for each in (step.cosines, step.sines)),
              None if heads.slopes is None else guarded(heads.slopes)]
    halves_apart = [each.strides[0] // each.itemsize for each in new[:2]]
    arguments = DecodeAttentionArguments(
        *map(pointer, (*new, *caches[:2], *tables)), pointer(y), None, None, tokens, heads.kv * heads.share, heads.kv,
        heads.size, heads.rotary, caches[0].shape[1], *halves_apart, heads.window, splits, heads.scale,
        heads.softcap, *map(pointer, caches[2:]), step.kv_bits)
    return arguments, Result(y, *caches), [*new, *tables]


def splits_for(heads: Heads, tokens: int, multiprocessors: int, length: int, kv_bits: int = 16) -> int:
    """The host's choice of splits."""
    arguments = DecodeAttentionArguments(tokens=tokens, num_heads=heads.kv * heads.share, kv_num_heads=heads.kv,
                                         head_size=heads.size, kv_bits=kv_bits)
    return library().edge_awq_decode_attention_splits(ctypes.byref(arguments), multiprocessors, length)


def rotated(x: np.ndarray, step: Step) -> np.ndarray:
    """x [tokens, n, size], each token turned to its position: (a, b) -> (a cos - b sin, b cos + a sin); float64.

    The products with sin are rounded to fp32, as the kernel has them: so its results, which it then rounds to fp16,
    are nearly always these rounded to fp16.
    """
    half = step.heads.rotary // 2
    rows = slice(step.past, step.past + len(x))
    cos, sin = (table[rows, None].astype(np.float64) for table in (step.cosines, step.sines))
    a, b, kept = np.split(x.astype(np.float64), [half, 2 * half], axis=2)
    a_sin, b_sin = ((part * sin).astype(np.float32) for part in (a, b))
    return np.concatenate([a * cos - b_sin, b * cos + a_sin, kept], axis=2)


@dataclass(frozen=True)
class Attention:
    """A step in float64 over caches as they are after it.

    Attributes:
        q: [heads, tokens, size], rotated and rounded to fp16; keys, values: [heads, total, size].
        scores: before the soft-cap; weights: of the softmax; distance: of tokens from keys; all [heads, tokens, total].
        y: [heads, tokens, size].
    """

    q: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    scores: np.ndarray
    distance: np.ndarray
    weights: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, step: Step, keys: np.ndarray, values: np.ndarray) -> Attention:
        """Over keys and values, float64 [kv heads, capacity, size]."""
        heads, tokens = step.heads, len(step.q)
        total = step.past + tokens
        q = rotated(step.q.reshape(tokens, -1, heads.size), step).transpose(1, 0, 2)
        q = q.astype(np.float16).astype(np.float64)
        keys, values = (np.repeat(each[:, :total], heads.share, axis=0) for each in (keys, values))
        products = heads.scale * q @ keys.transpose(0, 2, 1)
        scores = heads.softcap * np.tanh(products / heads.softcap) if heads.softcap else products
        distance = step.past + np.arange(tokens)[:, None] - np.arange(total)
        if heads.alibi:
            scores = scores - heads.slopes[:, None, None] * distance
        visible = (distance >= 0) & ((distance < heads.window) | (heads.window == 0))
        weights = np.where(visible, np.exp(scores - np.where(visible, scores, -np.inf).max(-1, keepdims=True)), 0)
        weights /= weights.sum(-1, keepdims=True)
        return cls(q, keys, values, scores, distance, weights, weights @ values)

    @property
    def spread(self) -> np.ndarray:
        """How far values are from y, weighted: [heads, tokens, size]."""
        return np.einsum("htk,htkd->htd", self.weights, np.abs(self.values[:, None] - self.y[:, :, None]))


def reference(step: Step, result: Result) -> tuple[np.ndarray, np.ndarray]:
    """y in float64 over the caches as the kernel left them, and how far the kernel may be from it.

    Sums in fp32 move a score by at most ``moved``: a soft-cap moves none further, and adds what its power and its
    reciprocals are off by, less than 2^-19 of the cap; a bias adds four roundings. Hence each weight moves by a factor
    of at most exp(2 moved), for it is relative to their sum; rounding weights to fp16 and powers of two add less than
    3 * 2^-11. Such a factor moves y by no more than it times the weighted distance of the values from y. Weights below
    fp16's normal numbers are off by 2^-25 of the largest weight.

    Over bytes a score has two more roundings. A weight is rounded after the value's scale has joined it, and the sum is
    not of these: up to 2^-11 of the weighted values more. 64 times the weight times the scale is off by 2^-25 if it is
    below fp16's normal numbers, and the value is then up to 127.
    """
    heads, found = step.heads, Attention.of(step, result.keys, result.values)
    total = found.keys.shape[1]
    roundings = heads.size + (3 if result.key_scales is None else 5)
    moved = heads.scale * np.abs(found.q) @ np.abs(found.keys).transpose(0, 2, 1) * roundings * UNIT_ROUNDOFF
    if heads.softcap:
        moved += heads.softcap * 2.0**-19
    if heads.alibi:
        slopes = heads.slopes[:, None, None]
        moved += 4 * UNIT_ROUNDOFF * (np.abs(found.scores) + slopes * np.abs(found.distance))
    factor = np.expm1(2 * moved.max(-1, keepdims=True)) + 3 * HALF_ROUNDOFF + total * UNIT_ROUNDOFF
    bound = factor * found.spread + HALF_ROUNDOFF * np.abs(found.y) + HALF_SMALLEST
    if result.key_scales is None:
        bound += total * HALF_SMALLEST / 2 * np.abs(found.values).max()
    else:
        bound += HALF_ROUNDOFF * found.weights @ np.abs(found.values) + total * HALF_SMALLEST / 2 * 127 / 64
    return tuple(each.transpose(1, 0, 2).reshape(len(step.q), -1) for each in (found.y, bound))


def check_result(step: Step, result: Result) -> None:
    """y is as near the reference as it must be, and the caches hold the new tokens."""
    y, bound = reference(step, result)
    excess = np.abs(result.y - y) - bound
    assert excess.max() <= 0, f"off by {np.abs(result.y - y).max()}"  # a NaN left in y fails too
    check_caches(step, result)


def check_caches(step, result):
    """The new rows are there, within one rounding; nothing else has changed."""
    rows = slice(step.past, step.past + len(step.q))
    heads = step.heads
    new_keys = rotated(step.k.reshape(len(step.k), heads.kv, heads.size), step).transpose(1, 0, 2)
    new_values = step.v.reshape(len(step.v), heads.kv, heads.size).transpose(1, 0, 2).astype(np.float64)
    if result.key_scales is None:
        np.testing.assert_allclose(result.key_cache[:, rows], new_keys, rtol=2.0**-10, atol=2.0**-20)
        np.testing.assert_array_equal(result.value_cache[:, rows], new_values)
    else:
        check_new_bytes(result.key_cache[:, rows], result.key_scales[:, rows], new_keys)
        check_new_bytes(result.value_cache[:, rows], result.value_scales[:, rows], new_values)
    for name in ("key_cache", "value_cache", *(() if result.key_scales is None else ("key_scales", "value_scales"))):
        before, after = getattr(step, name), getattr(result, name)
        np.testing.assert_array_equal(np.delete(after, rows, 1), np.delete(before, rows, 1))


def check_new_bytes(stored, scales, exact):
    """Scales are the largest value over 127, and bytes are half of one off.

    Rotation, scale and quotient in fp32, with a GPU's reciprocal, add less than 2^-20 of the largest value.
    """
    largest = np.abs(exact).max(-1)
    np.testing.assert_allclose(scales, largest / 127, rtol=2.0**-21, atol=0)
    off = np.abs(dequantized(stored, scales) - exact)
    assert (off <= (0.5 / 127 + 2.0**-20) * largest[..., None]).all() and stored.min() >= 1
