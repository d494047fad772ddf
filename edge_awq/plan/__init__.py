"""PLAN: what a model needs and how fast memory lets it run, before anything is built. Needs no torch."""

from __future__ import annotations

from dataclasses import replace

from edge_awq.detect import detect_target, mode_named, read_machine
from edge_awq.plan.plan import Plan, Request, make_plan
from edge_awq.plan.source import find_subject
from edge_awq.plan.speed import kv_bits_of
from edge_awq.target import AUTO, find_target, load_targets

__all__ = ["Plan", "Request", "plan_for"]


def plan_for(model: str, target: str | None, request: Request) -> list[Plan]:
    """Plan ``model`` for one target, or for every one that is known.

    Among all of them, those that have no KV cache of the bits that are asked for have their own.

    Args:
        target: a name, "auto" for this machine in its power mode, the file of a profile, or None for all.

    Raises:
        EdgeAwqError: the model, the target or the request cannot be planned for.
    """
    subject, known = find_subject(model), load_targets()
    machine = read_machine()
    one = detect_target(machine, known) if target == AUTO else find_target(target) if target else None
    if target == AUTO and request.mode is None:
        request = replace(request, mode=mode_named(one, machine.power_mode))
    if one:
        return [make_plan(subject, one, request, machine.memory_bytes, known)]
    anywhere = replace(request, kv_bits=None)
    return [make_plan(subject, each, request if request.kv_bits in kv_bits_of(each) else anywhere,
                      machine.memory_bytes, known) for each in known]
