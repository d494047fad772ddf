"""Plugin-free lowering: edge-awq's ops become standard ones that TensorRT has kernels for.

    Int4MatMul, Int8MatMul  ->  x @ DequantizeLinear(q - middle, scales).T   blocks along K, no zero points
    CachedAttention         ->  RotaryEmbedding, TensorScatter into a cache of fixed size, Attention with a mask

TensorRT's int4 has no zero points, so only symmetric weights can be lowered. Whatever depends on the length of the
cache is computed on the device, so that one captured CUDA graph would serve every step. Ops: https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

from edge_awq.engine.ort.graph import Graph
from edge_awq.engine.standard import attention, matmul, positions
from edge_awq.engine.standard.options import IR_VERSION, OPSET, StandardOptions
from edge_awq.engine.standard.types import set_types
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import DOMAIN


@dataclass(frozen=True)
class Lowered:
    """A graph of standard ops.

    Attributes:
        model: input_ids int64 [1, tokens]; past_length, num_logits int64 [1]; past_key_{i}, past_value_{i} of the
            activations' type [1, kv_heads, context, head_size], of which every row must be finite. Outputs: logits
            float32 [1, num_logits, vocab_size]; present_key_{i}, present_value_{i}, which may be the past's memory.
        stored_as: constant in the weights file -> its element type there; the model says what it must become.
    """

    model: onnx.ModelProto
    stored_as: dict[str, int]


def lower(model: onnx.ModelProto, weights: Path, options: StandardOptions) -> Lowered:
    """Lower a canonical graph, loaded without its external data; the model given stays as it is.

    ``weights``: its weights file, from which the zero points are read.

    Raises:
        EdgeAwqError: a matrix has other zero points than the middle, or an op has no such form.
    """
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    stored_as = {tensor.name: tensor.data_type for tensor in typed.graph.initializer if tensor.external_data}
    set_types(typed, options)
    graph = Graph(typed)
    positions.add(graph)
    for node in matmul.find(graph):
        matmul.rewrite(graph, node, weights)
    for node in attention.find(graph):
        attention.rewrite(graph, node, options)
    return Lowered(_finish(graph, options), stored_as)


def _finish(graph: Graph, options: StandardOptions) -> onnx.ModelProto:
    unknown = {node.op_type for node in graph.nodes if node.domain == DOMAIN}
    if unknown:
        raise EdgeAwqError(f"{', '.join(sorted(unknown))}: no form without plugins is known",
                           hint="build the bundle again with this edge-awq")
    model = graph.finish()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    for value in [*model.graph.input, *model.graph.output]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == "context":
                size.dim_value = options.context
    return model
