"""The canonical graph: a decoder as ONNX, its weights read from the weights file, its words from the family file.

Activations are float32. Built node by node from ``DecoderConfig`` and from which tensors are stored; no weight is
read and nothing is traced, so a graph of any size is built in well under a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

import edge_awq
from edge_awq.export.builder import GraphBuilder
from edge_awq.export.ops import (
    CACHED_ATTENTION,
    CONTRACT_VERSION,
    DOMAIN,
    INT4_MATMUL,
    INT8_MATMUL,
    IR_VERSION,
    OPSET,
    function,
)
from edge_awq.model.config import DecoderConfig
from edge_awq.model.family import Family
from edge_awq.weights import StoredTensor

END = 2**63 - 1  # slices to here go to the end


@dataclass(frozen=True)
class _Decoder:
    """What every part of the graph is built from."""

    family: Family
    config: DecoderConfig
    graph: GraphBuilder


def build_graph(family: Family, config: DecoderConfig, layout: Mapping[str, StoredTensor]) -> onnx.ModelProto:
    """The canonical graph of a decoder whose weights lie as ``layout`` says.

    Inputs: input_ids int64 [1, tokens]; past_length int64 [1], tokens in the cache; num_logits int64 [1], the newest
    positions whose logits are wanted; past_key_{i}, past_value_{i} float32 [1, kv_heads, context, head_size].
    Outputs: logits float32 [1, num_logits, vocab_size]; present_key_{i}, present_value_{i} as the past.

    Raises:
        EdgeAwqError: a tensor is not stored, or its shape contradicts ``config``.
    """
    graph = GraphBuilder(layout)
    decoder = _Decoder(family, config, graph)
    graph.input("input_ids", TensorProto.INT64, [1, "tokens"])
    graph.input("past_length", TensorProto.INT64, [1])
    graph.input("num_logits", TensorProto.INT64, [1])
    graph.output("logits", TensorProto.FLOAT, [1, "num_logits", config.vocab_size])

    x = _embed(decoder, "input_ids")
    for index in range(config.num_layers):
        x = RESIDUALS[family.residual](decoder, f"blocks.{index}", index, x)
    _head(decoder, x)
    return _finish(graph, f"{family.name} decoder")


def _finish(graph: GraphBuilder, name: str) -> onnx.ModelProto:
    model = helper.make_model(
        graph.graph(name),
        functions=[function(op) for op in graph.ops],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, CONTRACT_VERSION)],
        ir_version=IR_VERSION,
        producer_name="edge-awq",
        producer_version=edge_awq.__version__,
    )
    metadata = {"edge_awq.contract_version": str(CONTRACT_VERSION), "edge_awq.version": edge_awq.__version__}
    helper.set_model_props(model, metadata)
    return model


def _embed(decoder: _Decoder, ids: str) -> str:
    graph = decoder.graph
    table = graph.weight("embed.weight", decoder.config.linear_shape("embed"))
    rows = graph.node("Gather", [table, ids], "embed.rows", axis=0)
    return graph.node("Cast", [rows], "embed", to=TensorProto.FLOAT)


def _head(decoder: _Decoder, x: str) -> None:
    """Logits of the newest positions; the rest of x is cut off before the widest matrix of all."""
    graph = decoder.graph
    first = graph.node("Neg", ["num_logits"], "newest.first")
    end, axis = graph.integers("newest.end", END), graph.integers("newest.axis", 1)
    newest = graph.node("Slice", [x, first, end, axis], "newest")
    logits = _linear(decoder, "head", NORMS[decoder.family.norm](decoder, "final_norm", newest))
    graph.node("Identity", [logits], "logits")


def _sequential(decoder: _Decoder, block: str, index: int, x: str) -> str:
    """x + attention(norm(x)), then x + mlp(norm(x))."""
    graph, norm, mlp = decoder.graph, NORMS[decoder.family.norm], MLPS[decoder.family.mlp]
    mixed = _attention(decoder, block, index, norm(decoder, f"{block}.attn_norm", x))
    x = graph.node("Add", [x, mixed], f"{block}.attn_residual")
    return graph.node("Add", [x, mlp(decoder, block, norm(decoder, f"{block}.mlp_norm", x))], f"{block}.mlp_residual")


def _attention(decoder: _Decoder, block: str, index: int, x: str) -> str:
    config, graph = decoder.config, decoder.graph
    cache = [1, config.num_kv_heads, "context", config.head_size]
    past = [graph.input(f"past_{part}_{index}", TensorProto.FLOAT, cache) for part in ("key", "value")]
    present = [f"present_{part}_{index}" for part in ("key", "value")]
    for name in present:
        graph.output(name, TensorProto.FLOAT, cache)
    mixed = graph.call(
        CACHED_ATTENTION,
        [*(_linear(decoder, f"{block}.{name}", x) for name in "qkv"), *past, "past_length",
         *POSITIONS[decoder.family.position](decoder)],
        [f"{block}.attention", *present],
        num_heads=config.num_heads,
        kv_num_heads=config.num_kv_heads,
        head_size=config.head_size,
        scale=config.head_size**-0.5,
        window=config.windows[index] or 0,
    )
    return _linear(decoder, f"{block}.o", mixed)


def _rope(decoder: _Decoder) -> list[str]:
    """The cos and sin tables, [context, rotary_size / 2]."""
    context, _ = decoder.graph.stored_shape("rope.cos")
    shape = (context, decoder.config.rope.rotary_size // 2)
    return [decoder.graph.weight(name, shape) for name in ("rope.cos", "rope.sin")]


def _rms_norm(decoder: _Decoder, name: str, x: str) -> str:
    weight = decoder.graph.weight(f"{name}.weight", (decoder.config.hidden_size,))
    return decoder.graph.node("RMSNormalization", [x, weight], name, axis=-1, epsilon=decoder.config.norm_eps)


def _gated_mlp(decoder: _Decoder, block: str, x: str) -> str:
    """down(activation(gate(x)) * up(x))."""
    gate = _linear(decoder, f"{block}.gate", x)
    active = ACTIVATIONS[decoder.config.activation](decoder.graph, f"{block}.activation", gate)
    gated = decoder.graph.node("Mul", [active, _linear(decoder, f"{block}.up", x)], f"{block}.gated")
    return _linear(decoder, f"{block}.down", gated)


def _linear(decoder: _Decoder, name: str, x: str) -> str:
    """x [.., K] @ W.T + bias -> [.., N]; how W is stored says how it is multiplied, a stored bias is added."""
    graph = decoder.graph
    multiply = _quantized_matmul if f"{name}.qweight" in graph.layout else _float_matmul
    y = multiply(decoder, name, x)
    if f"{name}.bias" not in graph.layout:
        return y
    features, _ = _shape(decoder, name)
    return graph.node("Add", [y, graph.weight(f"{name}.bias", (features,))], f"{name}.biased")


def _shape(decoder: _Decoder, name: str) -> tuple[int, int]:
    """(N, K) of the linear ``name``, inside a block or outside."""
    return decoder.config.linear_shape(name.rpartition(".")[2])


def _quantized_matmul(decoder: _Decoder, name: str, x: str) -> str:
    """4 or 8 bits, as the width of the stored rows tells."""
    graph, (features, width) = decoder.graph, _shape(decoder, name)
    packed = graph.stored_shape(f"{name}.qweight")[-1] * 2 == width
    groups = graph.stored_shape(f"{name}.scales")[-1]
    tensors = [
        graph.weight(f"{name}.qweight", (features, width), packed),
        graph.weight(f"{name}.scales", (features, groups)),
        graph.weight(f"{name}.zero_points", (features, groups + groups % 2 if packed else groups), packed),
    ]
    op = INT4_MATMUL if packed else INT8_MATMUL
    return graph.call(op, [x, *tensors], [name], K=width, N=features, group_size=width // groups)


def _float_matmul(decoder: _Decoder, name: str, x: str) -> str:
    """A tied head has no matrix of its own: it multiplies by the embedding."""
    graph, stored = decoder.graph, f"{name}.weight"
    if name == "head" and stored not in graph.layout and decoder.config.tied_head is not False:
        stored = "embed.weight"
    rows = graph.node("Cast", [graph.weight(stored, _shape(decoder, name))], f"{name}.rows", to=TensorProto.FLOAT)
    columns = graph.node("Transpose", [rows], f"{name}.columns", perm=[1, 0])
    return graph.node("MatMul", [x, columns], name)


def _silu(graph: GraphBuilder, name: str, x: str) -> str:
    gate = graph.node("Sigmoid", [x], f"{name}.sigmoid")
    return graph.node("Mul", [x, gate], name)


# Words of family files and of DecoderConfig -> the function that builds them.
Part = Callable[..., str]
NORMS: dict[str, Part] = {"rms": _rms_norm}
MLPS: dict[str, Part] = {"gated": _gated_mlp}
RESIDUALS: dict[str, Part] = {"sequential": _sequential}
POSITIONS: dict[str, Callable[[_Decoder], list[str]]] = {"rope": _rope}
ACTIVATIONS: dict[str, Part] = {
    "silu": _silu,
    "gelu": lambda graph, name, x: graph.node("Gelu", [x], name),
    "gelu_tanh": lambda graph, name, x: graph.node("Gelu", [x], name, approximate="tanh"),
    "relu": lambda graph, name, x: graph.node("Relu", [x], name),
}
