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
from edge_awq.model.alibi import alibi_slopes
from edge_awq.model.config import DecoderConfig
from edge_awq.model.family import Family
from edge_awq.model.folds import ACT_SCALE
from edge_awq.weights import StoredTensor

END = 2**63 - 1  # slices to here go to the end


@dataclass(frozen=True)
class _Decoder:
    """What every part of the graph is built from."""

    config: DecoderConfig
    graph: GraphBuilder

    def norm(self, name: str, x: str) -> str:
        """The norm ``name`` of x, of the kind that the family uses."""
        return NORMS[self.config.norm](self, name, x)


@dataclass(frozen=True)
class _Block:
    """One block of the decoder; its parts take the name of a tensor and return that of their output."""

    decoder: _Decoder
    index: int

    @property
    def name(self) -> str:
        return f"blocks.{self.index}"

    def norm(self, name: str, x: str) -> str:
        return self.decoder.norm(f"{self.name}.{name}", x)

    def linear(self, name: str, x: str) -> str:
        return _linear(self.decoder, f"{self.name}.{name}", x)

    def add(self, x: str, y: str, name: str) -> str:
        return self.decoder.graph.node("Add", [x, y], f"{self.name}.{name}")

    def mlp(self, x: str) -> str:
        return MLPS[self.decoder.config.mlp](self, x)


def build_graph(family: Family, config: DecoderConfig, layout: Mapping[str, StoredTensor]) -> onnx.ModelProto:
    """The canonical graph of a decoder whose weights lie as ``layout`` says.

    Inputs: input_ids int64 [1, tokens]; past_length int64 [1], tokens in the cache; num_logits int64 [1], the newest
    positions whose logits are wanted; past_key_{i}, past_value_{i} float32 [1, kv_heads, context, head_size].
    Outputs: logits float32 [1, num_logits, vocab_size]; present_key_{i}, present_value_{i} as the past.

    Raises:
        EdgeAwqError: a tensor is not stored, or its shape contradicts ``config``.
    """
    graph = GraphBuilder(layout)
    decoder = _Decoder(config, graph)
    graph.input("input_ids", TensorProto.INT64, [1, "tokens"])
    graph.input("past_length", TensorProto.INT64, [1])
    graph.input("num_logits", TensorProto.INT64, [1])
    graph.output("logits", TensorProto.FLOAT, [1, "num_logits", config.vocab_size])

    x = _embed(decoder, "input_ids")
    for index in range(config.num_layers):
        x = RESIDUALS[config.residual](_Block(decoder, index), x)
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
    config, graph = decoder.config, decoder.graph
    table = graph.weight("embed.weight", config.linear_shape("embed"))
    rows = graph.node("Gather", [table, ids], "embed.rows", axis=0)
    x = graph.node("Cast", [rows], "embed", to=TensorProto.FLOAT)
    if config.embed_scale != 1.0:
        x = graph.node("Mul", [x, graph.scalar("embed.scale", config.embed_scale)], "embed.scaled")
    return POSITIONS[config.position](decoder, x)


def _no_positions(decoder: _Decoder, x: str) -> str:
    """Positions come in with the attention."""
    return x


def _learned_positions(decoder: _Decoder, x: str) -> str:
    """x + table[past_length : past_length + tokens]."""
    config, graph = decoder.config, decoder.graph
    context, _ = graph.stored_shape("positions.weight")
    table = graph.weight("positions.weight", (context, config.hidden_size))
    tokens = graph.node("Shape", ["input_ids"], "positions.tokens", start=1)
    end = graph.node("Add", ["past_length", tokens], "positions.end")
    axis = graph.integers("positions.axis", 0)
    rows = graph.node("Slice", [table, "past_length", end, axis], "positions.rows")
    positions = graph.node("Cast", [rows], "positions", to=TensorProto.FLOAT)
    return graph.node("Add", [x, positions], "embed.positioned")


def _head(decoder: _Decoder, x: str) -> None:
    """Logits of the newest positions; the rest of x is cut off before the widest matrix of all."""
    graph, cap = decoder.graph, decoder.config.logit_softcap
    first = graph.node("Neg", ["num_logits"], "newest.first")
    end, axis = graph.integers("newest.end", END), graph.integers("newest.axis", 1)
    newest = graph.node("Slice", [x, first, end, axis], "newest")
    logits = _linear(decoder, "head", decoder.norm("final_norm", newest))
    if cap is not None:
        bound = graph.scalar("head.cap", cap)
        ratio = graph.node("Div", [logits, bound], "head.ratio")
        logits = graph.node("Mul", [graph.node("Tanh", [ratio], "head.tanh"), bound], "head.capped")
    graph.node("Identity", [logits], "logits")


def _sequential(block: _Block, x: str) -> str:
    """x + attention(norm(x)), then x + mlp(norm(x))."""
    x = block.add(x, _attention(block, block.norm("attn_norm", x)), "attn_residual")
    return block.add(x, block.mlp(block.norm("mlp_norm", x)), "mlp_residual")


def _parallel(block: _Block, x: str) -> str:
    """x + attention(y) + mlp(y), y = norm(x)."""
    y = block.norm("attn_norm", x)
    return block.add(block.add(x, _attention(block, y), "attn_residual"), block.mlp(y), "mlp_residual")


def _parallel_two_norms(block: _Block, x: str) -> str:
    """x + attention(norm(x)) + mlp(other_norm(x))."""
    mixed = _attention(block, block.norm("attn_norm", x))
    return block.add(block.add(x, mixed, "attn_residual"), block.mlp(block.norm("mlp_norm", x)), "mlp_residual")


def _sandwich(block: _Block, x: str) -> str:
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""
    mixed = block.norm("post_attn_norm", _attention(block, block.norm("attn_norm", x)))
    x = block.add(x, mixed, "attn_residual")
    return block.add(x, block.norm("post_mlp_norm", block.mlp(block.norm("mlp_norm", x))), "mlp_residual")


def _norm_after(block: _Block, x: str) -> str:
    """x + norm(attention(x)), then x + norm(mlp(x))."""
    x = block.add(x, block.norm("post_attn_norm", _attention(block, x)), "attn_residual")
    return block.add(x, block.norm("post_mlp_norm", block.mlp(x)), "mlp_residual")


def _attention(block: _Block, x: str) -> str:
    config, graph, index = block.decoder.config, block.decoder.graph, block.index
    cache = [1, config.num_kv_heads, "context", config.head_size]
    past = [graph.input(f"past_{part}_{index}", TensorProto.FLOAT, cache) for part in ("key", "value")]
    present = [f"present_{part}_{index}" for part in ("key", "value")]
    for name in present:
        graph.output(name, TensorProto.FLOAT, cache)
    mixed = graph.call(
        CACHED_ATTENTION,
        [*(_heads(block, name, block.linear(name, x)) for name in "qkv"), *past, "past_length",
         *_rope(block.decoder, index), _slopes(block.decoder)],
        [f"{block.name}.attention", *present],
        num_heads=config.num_heads,
        kv_num_heads=config.num_kv_heads,
        head_size=config.head_size,
        scale=config.attention_scale,
        window=config.windows[index] or 0,
        softcap=config.attention_softcap or 0.0,
    )
    return block.linear("o", mixed)


def _heads(block: _Block, name: str, x: str) -> str:
    """q, k or v as the attention takes it: clipped, or normalized head by head or as a whole, where the model does."""
    config, graph = block.decoder.config, block.decoder.graph
    if config.clip_qkv is not None:
        bounds = [graph.scalar("clip.low", -config.clip_qkv), graph.scalar("clip.high", config.clip_qkv)]
        x = graph.node("Clip", [x, *bounds], f"{block.name}.{name}_clipped")
    if f"{block.name}.{name}_norm.weight" not in graph.layout:
        return x
    if config.qk_norm == "row":
        return block.norm(f"{name}_norm", x)
    split = graph.integers("heads.split", 0, 0, -1, config.head_size)
    joined = graph.integers("heads.joined", 0, 0, -1)
    heads = graph.node("Reshape", [x, split], f"{block.name}.{name}_heads")
    return graph.node("Reshape", [block.norm(f"{name}_norm", heads), joined], f"{block.name}.{name}_normed")


def _rope(decoder: _Decoder, layer: int) -> list[str]:
    """The cos and sin tables of a layer, [context, rotary_size / 2], without columns where nothing is rotated."""
    config, graph = decoder.config, decoder.graph
    rope = config.rope_of(layer)
    if rope is None:
        return [graph.empty(name, (config.max_positions, 0)) for name in ("no_rope.cos", "no_rope.sin")]
    tables = [f"{config.rope_name(layer)}.{part}" for part in ("cos", "sin")]
    context, _ = graph.stored_shape(tables[0])
    return [graph.weight(name, (context, rope.rotary_size // 2)) for name in tables]


def _slopes(decoder: _Decoder) -> str:
    """ALiBi's slopes, [num_heads], zeros where there is none."""
    config = decoder.config
    none = config.alibi_max_bias is None
    slopes = [0.0] * config.num_heads if none else alibi_slopes(config.num_heads, config.alibi_max_bias)
    return decoder.graph.vector("alibi.slopes", slopes)


def _rms_norm(decoder: _Decoder, name: str, x: str) -> str:
    inputs, epsilon = _norm_inputs(decoder, name, x), decoder.config.norm_eps
    return decoder.graph.node("RMSNormalization", inputs, name, axis=-1, epsilon=epsilon)


def _layer_norm(decoder: _Decoder, name: str, x: str) -> str:
    inputs, epsilon = _norm_inputs(decoder, name, x), decoder.config.norm_eps
    return decoder.graph.node("LayerNormalization", inputs, name, axis=-1, epsilon=epsilon)


def _norm_inputs(decoder: _Decoder, name: str, x: str) -> list[str]:
    """x, the gain, and the bias where one is stored."""
    graph, shape = decoder.graph, (decoder.config.norm_size(name.rpartition(".")[2]),)
    kinds = ("weight", "bias") if f"{name}.bias" in graph.layout else ("weight",)
    return [x, *(graph.weight(f"{name}.{kind}", shape) for kind in kinds)]


def _gated_mlp(block: _Block, x: str) -> str:
    """down(activation(gate(x)) * up(x))."""
    graph, active = block.decoder.graph, _active(block, block.linear("gate", x))
    gated = graph.node("Mul", [active, block.linear("up", x)], f"{block.name}.gated")
    return block.linear("down", gated)


def _plain_mlp(block: _Block, x: str) -> str:
    """down(activation(up(x)) * act_scale), without the scale where none is stored."""
    graph, inner = block.decoder.graph, _active(block, block.linear("up", x))
    if (scale := f"{block.name}.{ACT_SCALE}.weight") in graph.layout:
        factor = graph.weight(scale, (block.decoder.config.intermediate_size,))
        inner = graph.node("Mul", [inner, factor], f"{block.name}.scaled")
    return block.linear("down", inner)


def _active(block: _Block, x: str) -> str:
    return ACTIVATIONS[block.decoder.config.activation](block.decoder.graph, f"{block.name}.activation", x)


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


def _relu_squared(graph: GraphBuilder, name: str, x: str) -> str:
    positive = graph.node("Relu", [x], f"{name}.relu")
    return graph.node("Mul", [positive, positive], name)


# Words of family files and of DecoderConfig -> the function that builds them.
Part = Callable[..., str]
NORMS: dict[str, Part] = {"rms": _rms_norm, "layer": _layer_norm}
MLPS: dict[str, Part] = {"gated": _gated_mlp, "plain": _plain_mlp}
RESIDUALS: dict[str, Part] = {
    "sequential": _sequential,
    "parallel": _parallel,
    "parallel_two_norms": _parallel_two_norms,
    "sandwich": _sandwich,
    "norm_after": _norm_after,
}
POSITIONS: dict[str, Part] = {"rope": _no_positions, "alibi": _no_positions, "learned": _learned_positions}
ACTIVATIONS: dict[str, Part] = {
    "silu": _silu,
    "gelu": lambda graph, name, x: graph.node("Gelu", [x], name),
    "gelu_tanh": lambda graph, name, x: graph.node("Gelu", [x], name, approximate="tanh"),
    "relu": lambda graph, name, x: graph.node("Relu", [x], name),
    "relu2": _relu_squared,
}
