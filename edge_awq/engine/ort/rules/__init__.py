"""The lowering rules, one a module, in the order in which they are applied.

A rule has two functions. ``find`` lists its matches: tuples of nodes, the first of which names the match in the report.
``rewrite`` replaces one match in the graph, or leaves the graph alone and says why it declined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import NodeProto

from edge_awq.engine.ort.graph import Graph
from edge_awq.engine.ort.rules import (
    attention,
    embedding,
    fuse_bias,
    matmul_nbits,
    merge_linears,
    skip_norm,
    split_head,
)
from edge_awq.engine.ort.rules.declined import Declined

Match = tuple[NodeProto, ...]


@dataclass(frozen=True)
class Rule:
    """One lowering rule."""

    name: str
    find: Callable[[Graph], list[Match]]
    rewrite: Callable[[Graph, Match], Declined | None]


RULES = tuple(
    Rule(module.__name__.rpartition(".")[2], module.find, module.rewrite)
    for module in (embedding, merge_linears, split_head, matmul_nbits, fuse_bias, attention, skip_norm)
)
