"""Tokens/s that memory allows, and what is predicted of them. Every prediction states its efficiency and that's source.

    limit     = bandwidth / (weights that a token reads + keys and values that it reads)
    predicted = min(efficiency * limit, instructions)      J/token <= watts of the power mode / predicted
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_awq.errors import EdgeAwqError
from edge_awq.plan.sizes import Sizes
from edge_awq.target import Mode, Target

KV_ELEMENT_BYTES = {"onnxruntime": 4, "tensorrt": 2}  # float32 on the CPU, float16 on a GPU
# The GEMVs' cubins hold at most this many instructions per weight (tests/plugins counts them), 128 a clock and SM.
INSTRUCTIONS_PER_WEIGHT = 3.0
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


def speed_at(context: int, sizes: Sizes, target: Target, mode: Mode) -> Speed:
    """The speed of one token after ``context`` tokens."""
    read = sizes.token_bytes + sizes.cache_read_bytes(context, KV_ELEMENT_BYTES.get(target.kind, 2))
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
