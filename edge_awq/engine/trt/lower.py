"""Lowering: the canonical graph, rule by rule, becomes one of the plugin library's kernels.

Function bodies are dropped, activations at plugins are float16, and the weights become inputs, so that an engine holds
none of them. A decoder layer of the usual kind is five plugins:

    norm + qkv  |  rotary + cache + attention  |  o + residual  |  norm + gate, up + activation  |  down + residual

Besides plugins only ops are left that the parser of TensorRT 8.6 knows, at opset 17. ``reference`` runs such a graph on
the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

import edge_awq
from edge_awq.engine.trt.draft import STORED_AS, Draft, LoweringOptions
from edge_awq.engine.trt.inside import put_inside
from edge_awq.engine.trt.names import (
    DOMAIN,
    IR_VERSION,
    LOWERING_VERSION,
    OPSET,
    PAST_LENGTH,
    SEED,
    STANDARD_OPS,
    normed_rows,
)
from edge_awq.engine.trt.rules import RULES, Rule
from edge_awq.engine.trt.rules.norm import PLUGINS
from edge_awq.engine.trt.weight_input import WeightInput
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import CONTRACT_VERSION
from edge_awq.export.ops import DOMAIN as CANONICAL_DOMAIN

DECODE = LoweringOptions()  # one token at a time, or up to eight speculated ones


@dataclass(frozen=True)
class Lowered:
    """A lowered graph.

    Attributes:
        model: inputs input_ids [1, tokens] and past_length [1], int64 (see LoweringOptions for TensorRT 8);
            past_key_{i}, past_value_{i} float16 [1, kv_heads, context, head_size], or int8 and their scales, see
            rules/attention.py; then ``weights``. Outputs logits float32 [1, tokens or 1, vocab_size]; present_key_{i},
            present_value_{i}, which are the memory of the past. If asked for, tokens, and the inputs sampling and seed
            that say how they are chosen, see rules/logits.py.
        weights: inputs that are the same in every call; none if they are inside.
        declined: what the rules left as it was, and why, "rule: node: reason".
        most_rows: tokens of one call at most.
    """

    model: onnx.ModelProto
    weights: tuple[WeightInput, ...]
    declined: tuple[str, ...]
    most_rows: int


def lower(model: onnx.ModelProto, options: LoweringOptions = DECODE, rules: Sequence[Rule] = RULES) -> Lowered:
    """Lower a canonical graph, loaded without its external data; the model given stays as it is.

    Raises:
        EdgeAwqError: the graph is of another contract, or asks for something that no kernel computes.
    """
    _check_contract(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    places = {tensor.name: tensor for tensor in copy.graph.initializer if tensor.external_data}
    del copy.functions[:]
    draft = Draft(gs.import_onnx(copy), options, options.most_rows or _fitting_rows(model))
    _outsource(draft, places)
    for rule in rules:
        rule(draft)
    draft.graph.cleanup().toposort()
    _check(draft)
    used = [draft.weights[name] for name in draft.graph.tensors() if name in draft.weights]
    if options.weights_inside:
        put_inside(draft, used, places)
        used = []
    else:
        tensors = draft.graph.tensors()
        draft.graph.inputs += [tensors[weight.name] for weight in used]
    _set_integer_types(draft)
    return Lowered(_export(draft), tuple(used), tuple(draft.declined), draft.most_rows)


def _fitting_rows(model: onnx.ModelProto) -> int:
    """As many as the widest norm in front of a matmul takes."""
    normed = {node.input[1] for node in model.graph.node if node.op_type in PLUGINS}
    return max(1, min(normed_rows(tensor.dims[0]) for tensor in model.graph.initializer if tensor.name in normed))


def _check_contract(model: onnx.ModelProto) -> None:
    version = {opset.domain: opset.version for opset in model.opset_import}.get(CANONICAL_DOMAIN)
    if version != CONTRACT_VERSION:
        raise EdgeAwqError(f"the graph has op contract version {version}, this edge-awq has {CONTRACT_VERSION}",
                           hint="build the bundle again")


def _outsource(draft: Draft, places: dict[str, TensorProto]) -> None:
    """Constants that lie in the weights file become tensors of it."""
    tensors = draft.graph.tensors()
    for name, stored in places.items():
        if name not in tensors:
            continue  # nothing reads it
        dtype, shape = STORED_AS.get(stored.data_type, "int8"), list(stored.dims)
        if stored.data_type == TensorProto.UINT4:
            shape[-1] //= 2
        weight = draft.weight(WeightInput(name, dtype, tuple(shape), (name,)))
        for reader in list(tensors[name].outputs):
            reader.inputs = [weight if tensor is tensors[name] else tensor for tensor in reader.inputs]


def _check(draft: Draft) -> None:
    for node in draft.graph.nodes:
        if node.domain != DOMAIN and (node.domain or node.op not in STANDARD_OPS):
            reasons = [line for line in draft.declined if f" {node.name}:" in line]
            raise EdgeAwqError(f"{node.name}: TensorRT 8.6 knows no {node.op}" + "".join(f" ({r})" for r in reasons),
                               hint="run this model on the target cpu")


def _set_integer_types(draft: Draft) -> None:
    if draft.options.tensorrt_major >= 10:
        return
    for tensor in draft.graph.inputs:
        if tensor.dtype == np.int64:
            tensor.dtype = np.dtype("int32")
            tensor.shape = [1, 2] if tensor.name in (PAST_LENGTH, SEED) else tensor.shape


def _export(draft: Draft) -> onnx.ModelProto:
    graph = draft.graph
    graph.opset, graph.functions = OPSET, []
    graph.import_domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, CONTRACT_VERSION)]
    model = gs.export_onnx(graph, ir_version=IR_VERSION, producer_name="edge-awq",
                           producer_version=edge_awq.__version__)
    helper.set_model_props(model, {"edge_awq.contract_version": str(CONTRACT_VERSION),
                                   "edge_awq.lowering_version": str(LOWERING_VERSION)})
    return model
