"""Rotary positions: frequencies with the scalings found in checkpoints, and their cos/sin tables.

Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753), Llama 3.1's frequency ramp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_awq.errors import EdgeAwqError


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions as config.json gives them.

    Attributes:
        theta: base of the frequencies.
        rotary_size: leading elements of each head that are rotated (even).
        kind: how frequencies are scaled; a key of SCALINGS.
        scaling: the parameters of that scaling.
        max_positions: positions the model was made for.
    """

    theta: float
    rotary_size: int
    kind: str = "default"
    scaling: dict[str, Any] = field(default_factory=dict)
    max_positions: int = 2048


def read_rope(table: dict[str, Any], head_size: int, max_positions: int) -> RopeSpec:
    """Rotary positions from a table with rope_theta, partial_rotary_factor and a scaling's kind and parameters."""
    kind = table.get("rope_type", table.get("type", "default"))
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise EdgeAwqError(f"config.json: rope scaling '{kind}' is not known", hint=f"known: {', '.join(SCALINGS)}")
    try:
        fraction = float(table["partial_rotary_factor"])
        size = int(head_size * fraction + 1e-6)  # a fraction may itself be a rounded quotient
        spec = RopeSpec(float(table["rope_theta"]), size, kind, dict(table), max_positions)
        if not 0 < spec.rotary_size <= head_size or spec.rotary_size % 2:
            raise EdgeAwqError(f"config.json: {fraction:g} of head size {head_size} cannot be rotated in pairs",
                               hint="check head_dim and partial_rotary_factor")
        for positions in (1, max_positions):
            inverse_frequencies(spec, positions)
    except (KeyError, TypeError, ZeroDivisionError, ValueError) as error:
        raise EdgeAwqError(
            f"config.json: rope scaling '{kind}' lacks or misstates a parameter: {error!r}",
            hint="download config.json again, or correct it",
        ) from error
    return spec


def rope_tables(spec: RopeSpec, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of every position, each [positions, rotary_size // 2] float32, scaled as the model expects."""
    frequencies, gain = inverse_frequencies(spec, positions)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.cos(angles) * np.float32(gain), np.sin(angles) * np.float32(gain)


def inverse_frequencies(spec: RopeSpec, positions: int) -> tuple[np.ndarray, float]:
    """Angle per position, [rotary_size // 2] float32, and the gain on cos and sin, for texts of up to ``positions``."""
    exponents = np.arange(0, spec.rotary_size, 2, dtype=np.float32) / spec.rotary_size
    base = (1.0 / np.power(np.float32(spec.theta), exponents)).astype(np.float32)
    frequencies, gain = SCALINGS[spec.kind](base, spec, positions)
    return frequencies.astype(np.float32), gain


def _unscaled(base: np.ndarray, spec: RopeSpec, positions: int) -> tuple[np.ndarray, float]:
    return base, 1.0


def _linear(base: np.ndarray, spec: RopeSpec, positions: int) -> tuple[np.ndarray, float]:
    return base / np.float32(spec.scaling["factor"]), 1.0


def _llama3(base: np.ndarray, spec: RopeSpec, positions: int) -> tuple[np.ndarray, float]:
    """Long wavelengths are slowed by ``factor``, short ones kept, a ramp lies between."""
    table = spec.scaling
    low, high = table["low_freq_factor"], table["high_freq_factor"]
    turns = table["original_max_position_embeddings"] * base / (2 * math.pi)  # rotations in the old context
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return base * (keep + (1 - keep) / table["factor"]), 1.0


def _yarn(base: np.ndarray, spec: RopeSpec, positions: int) -> tuple[np.ndarray, float]:
    """Per dimension: kept above ``beta_fast`` rotations, slowed below ``beta_slow``, a ramp between (YaRN, eq. 23)."""
    table = spec.scaling
    original = table.get("original_max_position_embeddings") or spec.max_positions
    factor = table.get("factor") or spec.max_positions / original

    def dimension_of(rotations: float) -> float:
        wavelength = original / (rotations * 2 * math.pi)
        return spec.rotary_size * math.log(wavelength) / (2 * math.log(spec.theta))

    first, last = dimension_of(table.get("beta_fast") or 32), dimension_of(table.get("beta_slow") or 1)
    if table.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, spec.rotary_size - 1)
    slowed = np.clip((np.arange(len(base)) - first) / max(last - first, 1e-3), 0.0, 1.0)
    return base * (1 - slowed) + base / factor * slowed, _yarn_gain(table, factor)


def _yarn_gain(table: dict[str, Any], factor: float) -> float:
    def gain(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if table.get("attention_factor") is not None:
        return float(table["attention_factor"])
    if table.get("mscale") and table.get("mscale_all_dim"):
        return gain(table["mscale"]) / gain(table["mscale_all_dim"])
    return gain(1.0)


def _longrope(base: np.ndarray, spec: RopeSpec, positions: int) -> tuple[np.ndarray, float]:
    """Per dimension a factor, one list for the context the model was first trained for, another beyond it.

    The tables of a bundle are made for its whole context, so one with a longer context uses the second list throughout.
    """
    table = spec.scaling
    original = table["original_max_position_embeddings"]
    factors = np.asarray(table["long_factor" if positions > original else "short_factor"], np.float32)
    if factors.shape != base.shape:
        raise ValueError(f"{len(factors)} factors for {len(base)} frequencies")
    stretched = table.get("factor") or spec.max_positions / original
    gain = table.get("attention_factor")
    if gain is None:
        gain = math.sqrt(1 + math.log(stretched) / math.log(original)) if stretched > 1 else 1.0
    return base / factors, float(gain)


SCALINGS: dict[str, Callable[[np.ndarray, RopeSpec, int], tuple[np.ndarray, float]]] = {
    "default": _unscaled,
    "linear": _linear,
    # Within max_positions, which edge-awq never exceeds, dynamic NTK scaling leaves the frequencies alone.
    "dynamic": _unscaled,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its first name
}
