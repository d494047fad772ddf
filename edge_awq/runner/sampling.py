"""Choosing the next token from its logits; every setting means what it means in transformers, in the same order."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_awq.engine.base import not_finite
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.runner.structure import Structure

_BLOCK = 512


@dataclass(frozen=True)
class SamplingSettings:
    """How a token is drawn; every default leaves its setting off.

    Attributes:
        temperature: divides the logits; 0 is greedy: always the most probable token.
        top_k: only the k most probable tokens; 0 is off.
        top_p: only the most probable tokens, as few as reach this probability together; 1 is off.
        min_p: only tokens at least this fraction as probable as the most probable one; 0 is off.
        repetition_penalty: above 1, tokens of the prompt and of the answer so far become less probable; 1 is off.
        seed: the same seed draws the same tokens, though an engine that draws them itself draws others than the host;
            None draws differently each time.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_setting("temperature", self.temperature, Real, lambda value: value >= 0, "0 (greedy) or more")
        check_setting("top_k", self.top_k, Integral, lambda value: value >= 0, "a whole number, 0 (off) or more")
        check_setting("top_p", self.top_p, Real, lambda value: 0 <= value <= 1, "a number from 0 to 1 (off)")
        check_setting("min_p", self.min_p, Real, lambda value: 0 <= value <= 1, "a number from 0 (off) to 1")
        check_setting("repetition_penalty", self.repetition_penalty, Real, lambda value: 0.01 <= value <= 100,
                      "a number from 0.01 to 100; 1 is off")
        if self.seed is not None:
            check_setting("seed", self.seed, Integral, lambda value: value >= 0, "a whole number, 0 or more")

    @classmethod
    def from_generation_config(cls, table: Mapping[str, Any]) -> SamplingSettings:
        """What a generation_config.json asks for: greedy unless it says ``do_sample``."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        given = {name: table[name] for name in names if table.get(name) is not None}
        return cls(**(given if table.get("do_sample") else {**given, "temperature": 0.0}))


def check_setting(name: str, value: Any, kind: type, is_allowed: Callable[[Any], bool], allowed: str) -> None:
    """Refuse a value that is not of its kind, not finite, or not allowed.

    Raises:
        EdgeAwqError: names the setting, the value and what is allowed.
    """
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max or not is_allowed(value):  # exact for whole numbers, too
        raise EdgeAwqError(f"{name} = {value!r:.80} is not possible", hint=f"use {allowed}")


class Sampler:
    """Draws one token after another; remembers which tokens were there, for the repetition penalty.

    Attributes:
        structure: what the drawn tokens must make up; None: any text.
    """

    def __init__(self, settings: SamplingSettings, vocab_size: int, structure: Structure | None = None) -> None:
        self.structure = structure
        self._settings = settings
        self._random = np.random.default_rng(settings.seed)
        self._seen = np.zeros(vocab_size, dtype=bool)

    def see(self, ids: Iterable[int]) -> None:
        """Tokens that the repetition penalty applies to from now on."""
        self._seen[list(ids)] = True

    def draw(self, logits: np.ndarray) -> int:
        """The next token id, from logits [V] float32."""
        if self.structure is not None:
            logits = self.structure.restrict(logits)
        token_id = sample(logits, self._settings, self._seen, self._random)
        if self.structure is not None:
            self.structure.accept(token_id)
        self._seen[token_id] = True
        return token_id


def sample(logits: np.ndarray, settings: SamplingSettings, seen: np.ndarray, random: np.random.Generator) -> int:
    """Draw a token id; the arguments alone decide it.

    Args:
        logits: [V] float32; -inf rules a token out.
        seen: [V] bool, the tokens that the repetition penalty applies to.

    Raises:
        EdgeAwqError: the logits hold NaN or leave no token.
    """
    if not math.isfinite(logits.max()):
        raise not_finite()
    scores = logits
    if settings.repetition_penalty != 1:
        scores = penalize(scores, seen, settings.repetition_penalty)
    if settings.temperature == 0:
        return int(scores.argmax())
    ids = None  # all of them
    if settings.top_k:  # before the temperature, which changes no order: few tokens are left for all that follows
        ids = top_k_ids(scores, settings.top_k)
        scores = scores[ids]
    scores = _divide(scores, settings.temperature)
    if settings.top_p < 1:
        kept = top_p_ids(scores, settings.top_p)
        ids, scores = kept if ids is None else ids[kept], scores[kept]
    if settings.min_p > 0:
        kept = min_p_ids(scores, settings.min_p)
        ids, scores = kept if ids is None else ids[kept], scores[kept]
    drawn = _draw(np.exp(scores), random)  # the best is at 0 and was kept
    return drawn if ids is None else int(ids[drawn])


def penalize(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Scores [V] of seen tokens divided by the penalty where positive, multiplied where negative.

    Source: Keskar et al. 2019, CTRL, section 4.1; the sign rule is transformers'.
    """
    ids = np.flatnonzero(seen)
    penalized = scores.copy()
    penalized[ids] = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
    return penalized


def top_k_ids(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Indices, ascending, of the k highest scores [V] and of all that equal the lowest of these; none of -inf."""
    candidates = _head(scores, lambda found: found.size >= top_k)
    if candidates.size <= top_k:
        return candidates
    return candidates[scores[candidates] >= np.partition(scores[candidates], -top_k)[-top_k]]


def top_p_ids(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the most probable tokens by scores [V]: those with less than top_p above them, and the best.

    Source: Holtzman et al. 2019, The Curious Case of Neural Text Degeneration (nucleus sampling).
    """
    weights = np.exp(scores - scores.max())
    total = weights.sum(dtype=np.float64)
    candidates = _head(scores, lambda found: weights[found].sum(dtype=np.float64) >= top_p * total)
    descending = candidates[np.argsort(scores[candidates], kind="stable")[::-1]]
    above = np.cumsum(weights[descending[:-1]], dtype=np.float64)
    return descending[: 1 + np.searchsorted(above, top_p * total)]


def min_p_ids(scores: np.ndarray, min_p: float) -> np.ndarray:
    """Indices, ascending, of tokens that by scores [V] are at least min_p times as probable as the best one.

    Source: Nguyen et al. 2024, Turning Up the Heat (min-p sampling).
    """
    return np.flatnonzero(scores >= scores.max() + math.log(min_p))


def _divide(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Scores by temperature, the best at 0: it stays there, however low the temperature; others may become -inf."""
    with np.errstate(over="ignore"):
        return (scores - scores.max()) / max(temperature, float(np.finfo(scores.dtype).tiny))


def _head(scores: np.ndarray, suffices: Callable[[np.ndarray], bool]) -> np.ndarray:
    """Indices, ascending, of the highest scores, so many that they suffice: to sort few is faster than a vocabulary."""
    best = scores.max()
    for width in (4.0, 8.0, 16.0):
        candidates = np.flatnonzero(scores >= best - width)
        if suffices(candidates):
            return candidates
    return np.flatnonzero(scores > -np.inf)


def _draw(weights: np.ndarray, random: np.random.Generator) -> int:
    """An index, each in proportion to its weight; sums of blocks first, as those of a vocabulary take long to make."""
    starts = np.arange(0, weights.size, _BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    point = random.random() * blocks[-1]
    block = _place(blocks, point)
    inside = np.cumsum(weights[starts[block]:][:_BLOCK], dtype=np.float64)
    return int(starts[block]) + _place(inside, point - (blocks[block - 1] if block else 0.0))


def _place(cumulative: np.ndarray, point: float) -> int:
    """The first index whose sum is above the point; where rounding leaves none, the last that has a weight."""
    return int(min(np.searchsorted(cumulative, point, side="right"), np.searchsorted(cumulative, cumulative[-1])))
