"""What int8 activations cost: every quantized matmul measured on its true inputs, and a way back for each.

With accuracy level 4 the kernel rounds its activations to int8, one scale per group of weights. That is several times
as fast as float32 activations, and harmless while a group's values are of one size; a group in which one value dwarfs
the others keeps little of them. So a probe of real tokens is run through the graph with float32 activations, and beside
each matmul runs its int8 twin on the same input, with the kernels of the machine that compiles.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from edge_awq.distributions import divergence, log_softmax
from edge_awq.engine.ort.embedding import Embedding
from edge_awq.engine.ort.inputs import token_inputs
from edge_awq.engine.ort.parts import run_in_parts
from edge_awq.engine.ort.rules.matmul_nbits import FLOAT_ACTIVATIONS, INT8_ACTIVATIONS, KERNEL

# Rounding to 127 steps of the largest value moves a group of 128 by at most sqrt(128 / 12) / 127 = 2.6 % of its length.
# An output that moves twice as far has lost what it is made of to something that the weights cancel.
LIMIT = 0.05
TINY = 1e-30  # keeps 0 / 0 out where a row of outputs is all zeros
ERRORS, LOGITS = "int8_errors", "logits"


@dataclass(frozen=True)
class AccuracyReport:
    """What the compiled graph gives away against one with float32 activations, on the probe.

    Attributes:
        probe_tokens: tokens that were run.
        limit: largest error with which a matmul keeps int8 activations.
        errors: matmul -> relative L2 error of its output with int8 activations, root mean square over the tokens.
        float_activations: the matmuls above the limit, which were given float32 activations.
        logits_error: relative L2 error of the compiled graph's logits, root mean square over the tokens.
        logits_kl: Kullback-Leibler divergence of its next-token distribution, mean over the tokens, in nats.
        top1_agreement: share of tokens after which both put the same token first.
    """

    probe_tokens: int
    limit: float
    errors: dict[str, float]
    float_activations: tuple[str, ...]
    logits_error: float
    logits_kl: float
    top1_agreement: float


@dataclass(frozen=True)
class Probe:
    """A run with float32 activations: logits [tokens, vocab_size] float32, and errors as in AccuracyReport."""

    logits: np.ndarray
    errors: dict[str, float]


def set_levels(model: onnx.ModelProto, float_activations: Collection[str]) -> None:
    """Give the named matmuls float32 activations, all others int8."""
    for node in _kernels(model):
        _set_level(node, FLOAT_ACTIVATIONS if node.name in float_activations else INT8_ACTIVATIONS)


def run_probe(model: onnx.ModelProto, weights: Path, ids: Sequence[int]) -> Probe:
    """Run ``ids`` through the lowered ``model`` with float32 activations, and each matmul's int8 twin beside it."""
    names = [node.name for node in _kernels(model)]
    logits, *errors = run_in_parts(_with_twins(model), weights, _feeds(model, weights, ids))
    measured = [float(error) for error in np.ravel(errors)]
    return Probe(logits[0], dict(zip(names, measured, strict=True)))


def find_logits(model: onnx.ModelProto, weights: Path, ids: Sequence[int]) -> np.ndarray:
    """Logits [tokens, vocab_size] float32 of the lowered ``model`` as it is."""
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    del alone.graph.output[1:]  # the cache is not looked at
    (logits,) = run_in_parts(alone, weights, _feeds(alone, weights, ids))
    return logits[0]


def above_limit(probe: Probe, limit: float) -> tuple[str, ...]:
    """Matmuls whose error exceeds ``limit``."""
    return tuple(name for name, error in probe.errors.items() if not error <= limit)


def compare(probe: Probe, logits: np.ndarray, limit: float) -> AccuracyReport:
    """The report on a compiled graph that gave ``logits`` [tokens, vocab_size] for the probe."""
    exact, found = probe.logits.astype(np.float64), logits.astype(np.float64)
    errors = np.linalg.norm(found - exact, axis=1) / np.maximum(np.linalg.norm(exact, axis=1), TINY)
    kl = divergence(log_softmax(exact), log_softmax(found))
    return AccuracyReport(
        probe_tokens=len(exact),
        limit=limit,
        errors=probe.errors,
        float_activations=above_limit(probe, limit),
        logits_error=float(np.sqrt(np.mean(errors**2))),
        logits_kl=float(kl.mean()),
        top1_agreement=float((exact.argmax(axis=1) == found.argmax(axis=1)).mean()),
    )


def _kernels(model: onnx.ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == KERNEL]


def _set_level(node: NodeProto, level: int) -> None:
    next(attribute for attribute in node.attribute if attribute.name == "accuracy_level").i = level


def _with_twins(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float32 activations, and one more output: the errors of all int8 twins."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    del graph.output[1:]  # the cache is not looked at
    if not _kernels(probe):
        return probe
    graph.initializer.append(helper.make_tensor("int8.tiny", TensorProto.FLOAT, [], [TINY]))
    graph.initializer.append(helper.make_tensor("int8.last_axis", TensorProto.INT64, [1], [-1]))
    nodes: list[NodeProto] = []
    errors = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != KERNEL:
            continue
        _set_level(node, FLOAT_ACTIVATIONS)
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.name = f"{node.name}.int8"
        twin.output[0] = twin.name
        _set_level(twin, INT8_ACTIVATIONS)
        measure = _measure(node.output[0], twin.name)
        nodes += [twin, *measure]
        errors.append(measure[-1].output[0])
    del graph.node[:]
    graph.node.extend(nodes)
    graph.node.append(helper.make_node("Concat", errors, [ERRORS], ERRORS, axis=0))
    graph.output.append(helper.make_tensor_value_info(ERRORS, TensorProto.FLOAT, [len(errors)]))
    return probe


def _measure(exact: str, found: str) -> list[NodeProto]:
    """sqrt(mean over tokens of |found - exact|^2 / |exact|^2), shape [1]; both [1, tokens, N]."""

    def node(kind: str, inputs: Sequence[str], step: str, **attributes: int) -> NodeProto:
        return helper.make_node(kind, inputs, [f"{found}.{step}"], f"{found}.{step}", **attributes)

    return [
        node("Sub", [found, exact], "difference"),
        node("ReduceSumSquare", [f"{found}.difference", "int8.last_axis"], "noise", keepdims=0),
        node("ReduceSumSquare", [exact, "int8.last_axis"], "signal", keepdims=0),
        node("Max", [f"{found}.signal", "int8.tiny"], "divisor"),
        node("Div", [f"{found}.noise", f"{found}.divisor"], "ratio"),
        node("ReduceMean", [f"{found}.ratio", "int8.last_axis"], "mean", keepdims=0),
        node("Sqrt", [f"{found}.mean"], "error"),
    ]


def _feeds(model: onnx.ModelProto, weights: Path, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """A first pass over ``ids`` whose logits are all wanted."""
    shapes = {value.name: [size.dim_value or len(ids) for size in value.type.tensor_type.shape.dim]
              for value in model.graph.input}
    embedding = Embedding(weights)
    feeds = token_inputs(shapes, ids, 0, len(ids), embedding)
    embedding.close()
    for name in set(shapes) - set(feeds):  # the caches, as large as the probe
        feeds[name] = np.zeros(shapes[name], np.float32)
    return feeds
