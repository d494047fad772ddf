"""Lowering: the canonical graph, rule by rule, becomes one of onnxruntime's own kernels.

A node whose rule declines keeps its function body, so every graph still runs; the report says who declined and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from edge_awq.engine.ort.graph import Graph
from edge_awq.engine.ort.rules import RULES, Rule


@dataclass(frozen=True)
class Refusal:
    """A rule that left a node as it was."""

    rule: str
    node: str
    reason: str


@dataclass(frozen=True)
class LoweringReport:
    """``fired`` counts rewrites by rule."""

    fired: dict[str, int]
    declined: tuple[Refusal, ...]


def lower(model: onnx.ModelProto, rules: Sequence[Rule] = RULES) -> tuple[onnx.ModelProto, LoweringReport]:
    """Apply every rule to every match of it; the model given stays as it is."""
    graph = Graph(model)
    fired = {}
    declined = []
    for rule in rules:
        matches = [(match, match[0].name) for match in rule.find(graph)]
        answers = [(name, rule.rewrite(graph, match)) for match, name in matches]
        refused = [Refusal(rule.name, name, answer.reason) for name, answer in answers if answer is not None]
        fired[rule.name] = len(answers) - len(refused)
        declined += refused
    return graph.finish(), LoweringReport(fired, tuple(declined))
