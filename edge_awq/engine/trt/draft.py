"""A graph under lowering: what the rules see and change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from edge_awq.engine.trt.names import DOMAIN, EXTRAS, MATMUL_WEIGHTS, PLUGIN_VERSION
from edge_awq.engine.trt.weight_input import WeightInput

STORED_AS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}  # what is not here is packed


@dataclass(frozen=True)
class LoweringOptions:
    """What the engine is for.

    Attributes:
        tensorrt_major: 8 knows no 64-bit integers: ids and tokens are int32, past_length int32 [1, 2], low word first.
        most_rows: tokens of one call at most; None: as many as the norms in front of matmuls take, 8 or fewer.
        last_logits: logits of the newest token alone; otherwise of all tokens of a call.
        choose: ``tokens``, the next one after each, int64 [1, rows], beside the logits; see rules/logits.py.
        weights_inside: the weights are constants of the engine instead of its inputs.
        kv_bits: of a cached key or value, 16; or 8, bytes with a scale per head and token.
    """

    tensorrt_major: int = 10
    most_rows: int | None = None
    last_logits: bool = False
    choose: bool = False
    weights_inside: bool = False
    kv_bits: int = 16


@dataclass
class Draft:
    """A graph with its weights and notes.

    Attributes:
        most_rows: tokens of one call at most.
        weights: name of a tensor -> what it is made of.
        declined: why rules left nodes as they were.
    """

    graph: gs.Graph
    options: LoweringOptions
    most_rows: int
    weights: dict[str, WeightInput] = field(default_factory=dict)
    declined: list[str] = field(default_factory=list)

    def nodes(self, *kinds: str) -> Iterator[gs.Node]:
        """Live nodes of these op types, a plugin's or a standard one's."""
        return (node for node in list(self.graph.nodes) if node.op in kinds and node.outputs)

    def is_weight(self, tensor: gs.Tensor) -> bool:
        """Whether it lies in the weights file."""
        return tensor.name in self.weights

    def weight(self, weight: WeightInput) -> gs.Variable:
        """A new tensor of the weights file."""
        self.weights[weight.name] = weight
        return gs.Variable(weight.name, np.dtype(weight.dtype), weight.shape)

    def stack(self, tensors: Sequence[gs.Tensor], name: str) -> gs.Variable:
        """Weights of one type as one, along the first axis."""
        parts = [self.weights[tensor.name] for tensor in tensors]
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return self.weight(WeightInput(name, parts[0].dtype, shape, sum((part.parts for part in parts), ())))

    def as_type(self, tensor: gs.Tensor, dtype: str) -> gs.Variable:
        """The same weight as another type of float."""
        weight = self.weights[tensor.name]
        return self.weight(dataclasses.replace(weight, name=f"{weight.name}.{dtype}", dtype=dtype))

    def decline(self, rule: str, node: gs.Node, reason: str) -> None:
        """Note why a node stays."""
        self.declined.append(f"{rule}: {node.name}: {reason}")

    def standard(self, kind: str, name: str, inputs: Sequence[gs.Tensor], **attributes: Any) -> gs.Variable:
        """Add a node of a standard op; returns its output."""
        output = gs.Variable(name)
        self.graph.nodes.append(gs.Node(kind, name, attributes, list(inputs), [output]))
        return output

    def plugin(self, kind: str, name: str, inputs: Sequence[gs.Tensor], outputs: Sequence[gs.Tensor],
               **attributes: float) -> gs.Node:
        """Add a plugin's node; attributes that are 0 and may be left out are."""
        given = {key: value for key, value in attributes.items() if value or key in REQUIRED}
        header = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": DOMAIN}
        node = gs.Node(kind, name, {**header, **given}, list(inputs), list(outputs), domain=DOMAIN)
        self.graph.nodes.append(node)
        return node

    def replace(self, old: gs.Node, kind: str, inputs: Sequence[gs.Tensor], **attributes: float) -> gs.Node:
        """Put a plugin's node in the place of ``old``, whose name and outputs it takes."""
        outputs = list(old.outputs)
        remove(old)
        return self.plugin(kind, old.name, inputs, outputs, **attributes)


REQUIRED = ("window", "softcap", "has_slopes")  # attributes that may be 0 and have no default, or another


def constant(name: str, values: Sequence[int] | np.ndarray, dtype: str = "int64") -> gs.Constant:
    """A small constant inside the graph."""
    return gs.Constant(name, np.asarray(values, dtype))


def remove(node: gs.Node) -> None:
    """Cut a node off; the next cleanup drops it."""
    node.inputs.clear()
    node.outputs.clear()


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Whoever reads ``old`` reads ``new``."""
    for reader in list(old.outputs):
        reader.inputs = [new if tensor is old else tensor for tensor in reader.inputs]


def producer(tensor: gs.Tensor, *kinds: str) -> gs.Node | None:
    """The node that makes a tensor, where it is of one of these op types."""
    return tensor.inputs[0] if tensor.inputs and tensor.inputs[0].op in kinds else None


def matmul_of(tensor: gs.Tensor) -> gs.Node | None:
    """The matmul plugin that makes ``tensor``."""
    node = producer(tensor, *MATMUL_WEIGHTS)
    return node if node is not None and node.domain == DOMAIN else None


def matmul_weights(node: gs.Node) -> list[gs.Tensor]:
    """The tensors of a matmul's W."""
    return list(node.inputs[1 : 1 + len(MATMUL_WEIGHTS[node.op])])


def outputs(node: gs.Node) -> int:
    """Features that a matmul gives: N, or half of it where gated."""
    return node.attrs["N"] // 2 if node.attrs.get("gated") else node.attrs["N"]


def flag(extra: str) -> str:
    """The attribute that asks for an extra input of a matmul."""
    return "norm" if extra == "norm_weight" else f"has_{extra}"


def extras(node: gs.Node) -> dict[str, gs.Tensor]:
    """A matmul's extra inputs by name."""
    names = [name for name in EXTRAS if node.attrs.get(flag(name))]
    return dict(zip(names, node.inputs[1 + len(MATMUL_WEIGHTS[node.op]) :], strict=True))


def give(node: gs.Node, **tensors: gs.Tensor) -> None:
    """Add extra inputs to a matmul, in the plugin's order; ``norm`` is for the caller to set."""
    found = extras(node) | tensors
    head = list(node.inputs[: 1 + len(MATMUL_WEIGHTS[node.op])])
    node.inputs = head + [found[name] for name in EXTRAS if name in found]
    node.attrs.update({flag(name): 1 for name in tensors if name != "norm_weight"})


def absorb(node: gs.Node, follower: gs.Node) -> None:
    """``node`` makes what ``follower`` made."""
    outputs = list(follower.outputs)
    remove(follower)
    node.outputs = outputs


def has_one_reader(tensor: gs.Tensor, graph: gs.Graph) -> bool:
    """Whether one node reads it, and no one outside the graph."""
    return len(tensor.outputs) == 1 and all(tensor is not output for output in graph.outputs)
