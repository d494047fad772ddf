"""Tokens/s that memory allows, and what is predicted of them. Every prediction states its efficiency and that's source.

    limit     = bandwidth / (weights that a token reads + keys and values that it reads)
    predicted = min(efficiency * limit, instructions)      J/token <= watts of the power mode / predicted
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_awq.errors import EdgeAwqError
from edge_awq.plan.sizes import Sizes
from edge_awq.target import Mode, Target

# Bits that a cached key or value may have, the usual first: float32 on the CPU; float16 or bytes on a GPU.
KV_BITS = {"onnxruntime": (32,), "tensorrt": (16, 8)}
# One token's GEMVs hold at most this many instructions per weight (tests/plugins counts them), 128 a clock and SM.
INSTRUCTIONS_PER_WEIGHT = 1.7
INSTRUCTIONS_PER_CLOCK = 128


@dataclass(frozen=True)
class Speed:
    """Decoding one token, batch 1, after ``context`` tokens. None: not known for this target.

    Attributes:
        bytes_per_token: weights, keys and values that are read.
        limit_tok_s: what memory allows.
        predicted_tok_s: what is expected of it; never a measurement.
        bound: "memory" or "instructions", whichever bounds the prediction.
        j_per_token: at most, if the power mode's whole budget is drawn.
    """

    context: int
    bytes_per_token: int
    limit_tok_s: float | None
    predicted_tok_s: float | None
    bound: str | None
    j_per_token: float | None


def pick_mode(target: Target, name: str | None) -> tuple[str | None, Mode]:
    """The power mode called ``name``, else the profile's default, with the device's own values where it is silent."""
    device = target.device
    if device is None:
        return None, Mode()
    if name is not None and name not in target.modes:
        raise EdgeAwqError(f"target '{target.name}': power mode '{name}' is not known",
                           hint=f"its modes: {', '.join(target.modes) or 'none'}")
    name = name or device.default_mode
    mode = target.modes.get(name, Mode()) if name else Mode()
    best = {"gpu_mhz": device.gpu_mhz, "bandwidth_gb_s": device.bandwidth_gb_s, "sm_count": device.sm_count}
    silent = {key: value for key, value in best.items() if getattr(mode, key) is None}
    return name, replace(mode, **silent)


def kv_bits_of(target: Target) -> tuple[int, ...]:
    """What a cached key or value may have on ``target``, the usual first."""
    return KV_BITS.get(target.kind, KV_BITS["tensorrt"])


def pick_kv_bits(target: Target, asked: int | None = None) -> int:
    """Bits of a cached key or value: as ``asked``, else as usual on ``target``.

    Raises:
        EdgeAwqError: its runtime has no such cache.
    """
    possible = kv_bits_of(target)
    if asked not in (None, *possible):
        raise EdgeAwqError(f"target '{target.name}' ({target.kind}) has no KV cache of {asked} bits",
                           hint="leave --kv-bits out" if len(possible) == 1 else
                           f"use --kv-bits {' or '.join(map(str, possible))}")
    return asked or possible[0]


def speed_at(context: int, sizes: Sizes, target: Target, mode: Mode, kv_bits: int | None = None) -> Speed:
    """The speed of one token after ``context`` tokens; ``kv_bits``: of a cached key or value, None: as usual."""
    read = sizes.token_bytes + sizes.cache_read_bytes(context, pick_kv_bits(target, kv_bits))
    limit = mode.bandwidth_gb_s * 1e9 / read if mode.bandwidth_gb_s else None
    if limit is None or target.forecast is None:
        return Speed(context, read, limit, None, None, None)
    predicted, bound = limit * target.forecast.efficiency, "memory"
    instructions = instruction_limit(sizes, mode)
    if instructions is not None and instructions < predicted:
        predicted, bound = instructions, "instructions"
    return Speed(context, read, limit, predicted, bound, mode.watts / predicted if mode.watts else None)


def instruction_limit(sizes: Sizes, mode: Mode) -> float | None:
    """Tokens/s if every SM issued an instruction of the GEMVs in every slot; matters where a mode gates SMs."""
    if mode.sm_count is None or mode.gpu_mhz is None:
        return None
    per_s = mode.sm_count * mode.gpu_mhz * 1e6 * INSTRUCTIONS_PER_CLOCK
    return per_s / INSTRUCTIONS_PER_WEIGHT / sizes.token_weights
