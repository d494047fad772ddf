"""The plan itself: one model on one target, go or no-go, and what would make it fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.plan.figure import MEAN_CONTEXT, Seed, read_figure
from edge_awq.plan.memory import Memory, longest_context, memory_for
from edge_awq.plan.sizes import Sizes
from edge_awq.plan.source import Subject
from edge_awq.plan.speed import Speed, kv_bits_of, pick_kv_bits, pick_mode, speed_at
from edge_awq.target import QuantSpec, Target

CONTEXTS = (MEAN_CONTEXT, 512, 2048, 8192)  # at which speed is forecast, as far as they fit into the cache


@dataclass(frozen=True)
class Request:
    """What was asked for; None takes the target's own.

    Attributes:
        context: tokens in the KV cache.
        mode: name of the power mode.
        precision: "w4a16" or "fp16".
        kv_bits: of a cached key or value, 16 or 8.
    """

    context: int | None = None
    mode: str | None = None
    precision: str | None = None
    kv_bits: int | None = None


@dataclass(frozen=True)
class Plan:
    """One model on one target, before anything is built.

    Attributes:
        mode: the power mode that is assumed.
        kv_bits: of a cached key or value; 8 of them have scales beside them.
        longest_context: the most tokens that fit, 0 for none.
        speeds: at the contexts of CONTEXTS that fit into the cache, and at its end.
        changes: what would make it fit, when it does not.
        seeds: the AWQ figure's values for this model and device.
    """

    model: str
    target: Target
    mode: str | None
    precision: str
    quant: QuantSpec
    context: int
    kv_bits: int
    memory: Memory
    longest_context: int
    speeds: tuple[Speed, ...]
    changes: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] = ()

    @property
    def fits(self) -> bool | None:
        """None: the target's memory is not known."""
        return self.memory.fits

    def to_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints; every speed in it is a forecast, none a measurement."""
        forecast = self.target.forecast
        memory = {f"{name}_bytes": value for name, value in dataclasses.asdict(self.memory).items()}
        return {
            "schema": "edge-awq.plan/1", "model": self.model, "target": self.target.name, "power_mode": self.mode,
            "precision": self.precision, "quant": dataclasses.asdict(self.quant) if self.precision != "fp16" else None,
            "context": self.context, "kv_bits": self.kv_bits, "longest_context": self.longest_context,
            "fits": self.fits,
            "memory": {**memory, "run_peak_bytes": self.memory.run_peak}, "changes": list(self.changes),
            "efficiency": dataclasses.asdict(forecast) if forecast else None,
            "speed": [dataclasses.asdict(speed) for speed in self.speeds],
            "seeds": [{"bar": seed.bar, "tok_s": seed.tok_s, "share_of_limit": seed.share_of_limit()}
                      for seed in self.seeds],
        }


def make_plan(subject: Subject, target: Target, request: Request, machine_bytes: int | None = None,
              others: tuple[Target, ...] = ()) -> Plan:
    """Plan ``subject`` for ``target``.

    Args:
        machine_bytes: this machine's memory, for a target that is any machine.
        others: targets to look for one that the model fits.

    Raises:
        EdgeAwqError: an unknown power mode, a context beyond the model's positions, a bundle of another precision, or a
            KV cache that the target has not.
    """
    precision = _precision(subject, request)
    sizes = subject.sizes(precision, target.quant, request.context or target.limits.max_context)
    if request.context and request.context > sizes.max_positions:
        raise EdgeAwqError(f"{subject.name}: context {request.context} is beyond its {sizes.max_positions} positions",
                           hint=f"use --context {sizes.max_positions} or less")
    context = request.context or min(target.limits.max_context, sizes.max_positions)
    mode_name, mode = pick_mode(target, request.mode)
    kv_bits = pick_kv_bits(target, request.kv_bits)
    memory = memory_for(sizes, target, context, machine_bytes, kv_bits)
    longest = longest_context(sizes, target, machine_bytes, kv_bits)
    contexts = sorted({*(c for c in CONTEXTS if c < context), context})
    plan = Plan(
        model=subject.name, target=target, mode=mode_name, precision=precision, quant=target.quant, context=context,
        kv_bits=kv_bits, memory=memory, longest_context=longest,
        speeds=tuple(speed_at(c, sizes, target, mode, kv_bits) for c in contexts),
        seeds=tuple(seed for seed in read_figure() if (seed.shape, seed.target) == (subject.shape, target.name)))
    if plan.fits is not False:
        return plan
    return dataclasses.replace(plan, changes=tuple(_changes(plan, subject, machine_bytes, others)))


def _precision(subject: Subject, request: Request) -> str:
    if subject.precision is None:
        return request.precision or "w4a16"
    if request.precision not in (None, subject.precision):
        raise EdgeAwqError(f"{subject.name} is a bundle of {subject.precision}, not {request.precision}",
                           hint="leave --precision out, or plan for the model that it was built from")
    return subject.precision


def _changes(plan: Plan, subject: Subject, machine_bytes: int | None, others: tuple[Target, ...]) -> Iterator[str]:
    """What would make the plan fit, the smallest change first."""
    if plan.memory.build_peak > plan.memory.available:
        yield "nothing on this target: compiling an engine alone takes more than it has"
    if _fits_in_bytes(plan, subject, machine_bytes):
        yield "--kv-bits 8"
    if plan.longest_context:
        yield f"--context {plan.longest_context}"
    elif plan.precision == "fp16" and subject.bundle is None:
        packed = subject.sizes("w4a16", plan.target.quant, plan.context)
        if memory_for(packed, plan.target, plan.context, machine_bytes).fits:
            yield "--precision w4a16"
        elif longest := longest_context(packed, plan.target, machine_bytes):
            yield f"--precision w4a16 --context {longest}"
    roomy = [target for target in others if target.device and _needs(subject, plan, target).fits]
    if roomy:
        smallest = min(roomy, key=lambda target: (not _is_alike(target, plan.target), target.device.memory_mib))
        yield f"--target {smallest.name}, the smallest known of its sort that holds it as it is"


def _fits_in_bytes(plan: Plan, subject: Subject, machine_bytes: int | None) -> bool:
    """Whether a KV cache of 8 bits would do, on a target that has one."""
    if 8 not in kv_bits_of(plan.target):
        return False
    sizes = subject.sizes(plan.precision, plan.target.quant, plan.context)
    return memory_for(sizes, plan.target, plan.context, machine_bytes, 8).fits is True


def _is_alike(target: Target, other: Target) -> bool:
    """Both boards with one memory for CPU and GPU, or both graphics cards."""
    return other.device is None or target.device.unified_memory == other.device.unified_memory


def _needs(subject: Subject, plan: Plan, target: Target) -> Memory:
    sizes: Sizes = subject.sizes(plan.precision, target.quant, plan.context)
    kv_bits = plan.kv_bits if plan.kv_bits in kv_bits_of(target) else None
    return memory_for(sizes, target, plan.context, kv_bits=kv_bits)
