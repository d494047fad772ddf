"""CachedAttention(q, k, v, cache, past_length)  ->  Attention(rotated q, TensorScatter(cache, rotated k), .., mask)

The mask says which rows of the cache a query sees; it is computed once for all layers with the same window. ALiBi's
penalty is added where there is one. A soft-cap is written out as MatMul, Tanh and Softmax: early texts of the op's
standard add the mask before the cap, later ones after it, and a parser does not say which it follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_awq.engine.ort.graph import Graph, attributes
from edge_awq.engine.standard.options import StandardOptions
from edge_awq.engine.standard.positions import POSITIONS
from edge_awq.engine.standard.types import constant
from edge_awq.export.ops import CACHED_ATTENTION

DISTANCE = "mask.distance"  # query position - key position, int64 [1, 1, tokens, context]
# Added to scores of rows that are not seen: the lowest value, as scores of infinity could meet one of the other sign.
LOWEST = {TensorProto.FLOAT16: -65504.0, TensorProto.BFLOAT16: -3.38e38, TensorProto.FLOAT: -3.4e38}


def find(graph: Graph) -> list[NodeProto]:
    """Every attention."""
    return graph.calls(CACHED_ATTENTION)


def rewrite(graph: Graph, node: NodeProto, options: StandardOptions) -> None:
    """Put rotation, update of the cache and attention in its place."""
    part = _Part(graph, options, node.name, attributes(node), [])
    q, k, v, past_key, past_value, past_length, cos, sin, slopes = node.input
    y, present_key, present_value = node.output
    queries = part.rotate(part.split(q, part.given["num_heads"], "q"), cos, sin, "q")
    keys = part.rotate(part.split(k, part.given["kv_num_heads"], "k"), cos, sin, "k")
    values = part.split(v, part.given["kv_num_heads"], "v")
    for cache, new, present in ((past_key, keys, present_key), (past_value, values, present_value)):
        part.node("TensorScatter", [cache, new, past_length], present, axis=2, mode="linear")
    mask = part.mask(numpy_helper.to_array(graph.initializer(slopes)).astype(np.float64))
    mixed = part.attend(queries, present_key, present_value, mask)
    part.node("Reshape", [part.turned(mixed, "mixed"), part.shape("joined", 0, 0, -1)], y)
    graph.replace([node], part.nodes)


@dataclass(frozen=True)
class _Part:
    """One attention in the making."""

    graph: Graph
    options: StandardOptions
    name: str
    given: dict[str, Any]
    nodes: list[NodeProto]

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def shape(self, name: str, *sizes: int) -> str:
        """A constant for Reshape; the same name is the same shape in all layers."""
        return self.graph.constant(constant(f"shape.{name}", np.array(sizes), TensorProto.INT64))

    def turned(self, x: str, name: str) -> str:
        """[1, a, b, head_size] -> [1, b, a, head_size]."""
        return self.node("Transpose", [x], f"{self.name}.{name}_turned", perm=[0, 2, 1, 3])

    def split(self, x: str, heads: int, name: str) -> str:
        """[1, tokens, heads * head_size] -> [1, heads, tokens, head_size]."""
        shape = self.shape(f"heads_{heads}_{self.given['head_size']}", 0, 0, heads, self.given["head_size"])
        return self.turned(self.node("Reshape", [x, shape], f"{self.name}.{name}_heads"), name)

    def rotate(self, x: str, cos: str, sin: str, name: str) -> str:
        """Turned to the new tokens' positions; as it is where the tables have no columns."""
        half = self.graph.initializer(cos).dims[1]
        if half == 0:
            return x
        partial = {} if 2 * half == self.given["head_size"] else {"rotary_embedding_dim": 2 * half}
        return self.node("RotaryEmbedding", [x, cos, sin, POSITIONS], f"{self.name}.{name}_rotated", **partial)

    def mask(self, slopes: np.ndarray) -> str:
        """What is added to the scores, [1, heads or 1, tokens, context]; or bool where that says it all."""
        window = self.given["window"] if self.given["window"] < self.options.context else 0
        visible, biased = f"mask.visible_{window}", f"mask.bias_{window}"
        self._distances()
        self._visible(visible, window)
        if self.given["softcap"] == 0 and not slopes.any():
            return visible
        if self.graph.producer(biased, "Where") is None:
            element_type = self.options.element_type
            lowest = constant("mask.lowest", np.array(LOWEST[element_type]), element_type)
            penalty = self.graph.constant(constant("mask.slopes", -slopes.reshape(1, -1, 1, 1), TensorProto.FLOAT))
            distance = self.node("Cast", [DISTANCE], f"{biased}.distance", to=TensorProto.FLOAT)
            product = self.node("Mul", [distance, penalty], f"{biased}.product")
            typed = self.node("Cast", [product], f"{biased}.typed", to=element_type)
            self.node("Where", [visible, typed, self.graph.constant(lowest)], biased)
        return biased

    def _distances(self) -> None:
        if self.graph.producer(DISTANCE, "Sub") is not None:
            return
        rows = np.arange(self.options.context).reshape(1, 1, 1, -1)
        keys = self.graph.constant(constant("mask.rows", rows, TensorProto.INT64))
        queries = self.node("Reshape", [POSITIONS, self.shape("column", 1, 1, -1, 1)], "mask.queries")
        self.node("Sub", [queries, keys], DISTANCE)

    def _visible(self, name: str, window: int) -> None:
        """A query sees itself and what is before it, up to ``window`` positions in all."""
        if self.graph.producer(name, "And") is not None or self.graph.producer(name, "GreaterOrEqual") is not None:
            return
        zero = self.graph.constant(constant("mask.zero", np.array(0), TensorProto.INT64))
        if window == 0:
            self.node("GreaterOrEqual", [DISTANCE, zero], name)
            return
        size = self.graph.constant(constant(f"mask.window_{window}", np.array(window), TensorProto.INT64))
        past = self.node("GreaterOrEqual", [DISTANCE, zero], f"{name}.past")
        near = self.node("Less", [DISTANCE, size], f"{name}.near")
        self.node("And", [past, near], name)

    def attend(self, queries: str, keys: str, values: str, mask: str) -> str:
        """softmax(softcap(scale * queries @ keys.T) + mask) @ values, [1, num_heads, tokens, head_size]."""
        name = f"{self.name}.mixed"
        if self.given["softcap"] == 0:
            return self.node("Attention", [queries, keys, values, mask], name, scale=self.given["scale"])
        return self._capped(queries, keys, values, mask)

    def _capped(self, queries: str, keys: str, values: str, mask: str) -> str:
        """The same, written out; heads are [1, kv_heads, share * tokens, head_size], so that keys need no copies."""
        kv_heads, share = self.given["kv_num_heads"], self.given["num_heads"] // self.given["kv_num_heads"]
        size, cap, element_type = self.given["head_size"], self.given["softcap"], self.options.element_type

        def number(name: str, value: float) -> str:
            return self.graph.constant(constant(f"{self.name}.{name}", np.array(value), element_type))

        def step(kind: str, inputs: list[str], name: str, **given: Any) -> str:
            return self.node(kind, inputs, f"{self.name}.{name}", **given)

        grouped = step("Reshape", [queries, self.shape(f"grouped_{kv_heads}_{size}", 1, kv_heads, -1, size)], "grouped")
        columns = step("Transpose", [keys], "columns", perm=[0, 1, 3, 2])
        products = step("MatMul", [grouped, columns], "products")
        heads = self.shape(f"scores_{kv_heads * share}_{self.options.context}", 1, kv_heads * share, -1,
                           self.options.context)
        scores = step("Reshape", [products, heads], "scores")
        ratio = step("Mul", [scores, number("ratio", self.given["scale"] / cap)], "ratios")
        capped = step("Mul", [step("Tanh", [ratio], "tanh"), number("cap", cap)], "capped")
        weights = step("Softmax", [step("Add", [capped, mask], "masked")], "weights", axis=-1)
        rows = self.shape(f"rows_{kv_heads}_{self.options.context}", 1, kv_heads, -1, self.options.context)
        mixed = step("MatMul", [step("Reshape", [weights, rows], "rows"), values], "mixed_rows")
        return step("Reshape", [mixed, self.shape(f"mixed_{kv_heads * share}_{size}", 1, kv_heads * share, -1, size)],
                    "mixed")
