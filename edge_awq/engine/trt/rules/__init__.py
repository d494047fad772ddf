"""The lowering rules, one a module, in the order in which they are applied.

A rule is a function ``apply(draft)`` that rewrites every match of its equation. What it leaves as it was it names in
``draft.declined``, with the reason; what no kernel computes at all is an EdgeAwqError.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_awq.engine.trt.draft import Draft
from edge_awq.engine.trt.rules import (
    act_scale,
    activation,
    attention,
    bias,
    fp16_matmul,
    gate,
    logits,
    matmul,
    newest,
    norm,
    norm_prologue,
    positions,
    qkv,
    residual,
    seams,
)

Rule = Callable[[Draft], None]

RULES: tuple[Rule, ...] = tuple(
    module.apply for module in (newest, positions, matmul, fp16_matmul, norm, attention, bias, activation, gate,
                                act_scale, qkv, residual, logits, norm_prologue, seams)
)
