"""A small builder of ONNX graphs whose large tensors lie in the weights file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from edge_awq.bundle import WEIGHTS
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import DOMAIN, OPS, Op
from edge_awq.weights import StoredTensor

STORED_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "U8": TensorProto.UINT8}
BUILD_AGAIN = "build the bundle again"


class GraphBuilder:
    """Collects nodes, inputs, outputs and initializers; every node has one name, which its first output shares."""

    def __init__(self, layout: Mapping[str, StoredTensor]) -> None:
        self.layout = layout
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}

    def input(self, name: str, element_type: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input; a word in ``shape`` is a size known only at run time."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def output(self, name: str, element_type: int, shape: Sequence[int | str]) -> None:
        """Declare a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, element_type, shape))

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node of a standard op; returns its output."""
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def call(self, op: Op, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> str:
        """Add a node of one of edge-awq's ops, named after its first output; returns that output."""
        self._nodes.append(helper.make_node(op.name, inputs, outputs, outputs[0], domain=DOMAIN, **attributes))
        return outputs[0]

    def integers(self, name: str, *values: int) -> str:
        """A constant int64 vector."""
        self._initializers[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        return name

    def scalar(self, name: str, value: float) -> str:
        """A constant float32 scalar."""
        self._initializers[name] = helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        return name

    def vector(self, name: str, values: Sequence[float]) -> str:
        """A constant float32 vector."""
        self._initializers[name] = helper.make_tensor(name, TensorProto.FLOAT, [len(values)], values)
        return name

    def empty(self, name: str, shape: tuple[int, ...]) -> str:
        """A constant float32 tensor without elements."""
        self._initializers[name] = helper.make_tensor(name, TensorProto.FLOAT, shape, [])
        return name

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor as it lies in the weights file.

        Raises:
            EdgeAwqError: the weights file has no such tensor.
        """
        if name not in self.layout:
            raise EdgeAwqError(f"{WEIGHTS}: tensor '{name}' is missing", hint=BUILD_AGAIN)
        return self.layout[name].shape

    def weight(self, name: str, shape: tuple[int, ...], packed: bool = False) -> str:
        """The stored tensor ``name``, read from the weights file; ``packed``: as uint4, two elements a byte.

        Raises:
            EdgeAwqError: the weights file has no such tensor, or not of this shape.
        """
        *outer, width = self.stored_shape(name)
        found = (*outer, width * 2 if packed else width)
        if found != shape:
            raise EdgeAwqError(
                f"{WEIGHTS}: tensor '{name}' has shape {list(found)}, but the config says {list(shape)}",
                hint=BUILD_AGAIN,
            )
        stored = self.layout[name]
        element_type = TensorProto.UINT4 if packed else STORED_TYPES[stored.dtype]
        tensor = TensorProto(name=name, data_type=element_type, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", WEIGHTS), ("offset", stored.offset), ("length", stored.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor
        return name

    def graph(self, name: str) -> onnx.GraphProto:
        """The finished graph."""
        return helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._initializers.values()))

    @property
    def ops(self) -> tuple[Op, ...]:
        """Those of edge-awq's ops that the graph calls."""
        used = {node.op_type for node in self._nodes if node.domain == DOMAIN}
        return tuple(op for op in OPS if op.name in used)
