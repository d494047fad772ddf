"""An ONNX graph under rewriting: who makes a tensor, who reads it, and edits that keep both true."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import onnx
from onnx import NodeProto, TensorProto, helper

from edge_awq.export.ops import DOMAIN, Op

MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own ops


class Graph:
    """A model taken apart into nodes and initializers; ``finish`` puts it together again."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.nodes: list[NodeProto] = []
        self.inputs = {value.name: value for value in model.graph.input}
        self.outputs = {value.name for value in model.graph.output}
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers: dict[str, NodeProto] = {}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        self._insert(0, model.graph.node)

    def calls(self, op: Op) -> list[NodeProto]:
        """Nodes of one of edge-awq's own ops."""
        return [node for node in self.nodes if node.domain == DOMAIN and node.op_type == op.name]

    def producer(self, tensor: str, kind: str) -> NodeProto | None:
        """The node that makes ``tensor``, where it is of the op type ``kind``."""
        node = self._producers.get(tensor)
        return node if node is not None and node.op_type == kind else None

    def readers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read ``tensor``."""
        return list(self._readers[tensor])

    def only_reader(self, tensor: str, kind: str) -> NodeProto | None:
        """The node of op type ``kind`` that alone reads ``tensor``, which is no output of the graph."""
        readers = self._readers[tensor]
        alone = len(readers) == 1 and tensor not in self.outputs
        return readers[0] if alone and readers[0].op_type == kind else None

    def initializer(self, name: str) -> TensorProto | None:
        """The constant called ``name``."""
        return self._initializers.get(name)

    def constant(self, tensor: TensorProto) -> str:
        """Add a constant, or replace the one of that name; returns its name."""
        self._initializers[tensor.name] = tensor
        return tensor.name

    def replace(self, old: Sequence[NodeProto], new: Iterable[NodeProto]) -> None:
        """Put ``new`` where the first of ``old`` stood."""
        gone = {id(node) for node in old}
        place = next(place for place, node in enumerate(self.nodes) if id(node) in gone)
        self.nodes = [node for node in self.nodes if id(node) not in gone]
        for node in old:
            for tensor in set(node.input):
                self._readers[tensor] = [reader for reader in self._readers[tensor] if reader is not node]
            for tensor in node.output:
                self._producers.pop(tensor, None)
        self._insert(place, new)

    def finish(self) -> onnx.ModelProto:
        """The model as it is now, without constants, inputs, functions and domains that nothing uses."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        read = {tensor for node in self.nodes for tensor in node.input}
        called = {node.op_type for node in self.nodes if node.domain == DOMAIN}
        _refill(model.graph.node, self.nodes)
        _refill(model.graph.initializer, (tensor for name, tensor in self._initializers.items() if name in read))
        _refill(model.graph.input, (value for name, value in self.inputs.items() if name in read))
        _refill(model.functions, [function for function in self._model.functions if function.name in called])
        kept = [opset for opset in self._model.opset_import if opset.domain != DOMAIN or called]
        _refill(model.opset_import, [*kept, helper.make_opsetid(MICROSOFT, 1)])
        del model.metadata_props[:]
        helper.set_model_props(model, self.metadata)
        return model

    def _insert(self, place: int, nodes: Iterable[NodeProto]) -> None:
        nodes = list(nodes)
        self.nodes[place:place] = nodes
        for node in nodes:
            for tensor in set(node.input):
                self._readers[tensor].append(node)
            for tensor in node.output:
                self._producers[tensor] = node


def _refill(field: object, items: Iterable[object]) -> None:
    items = list(items)
    del field[:]
    field.extend(items)


def attributes(node: NodeProto) -> dict[str, object]:
    """The attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def join(tensors: Sequence[TensorProto], name: str) -> TensorProto | None:
    """Matrices (or vectors) that follow one another in the weights file as one constant, stacked along axis 0.

    None where they do not, or where their types or columns differ.
    """
    places = [_place(tensor) for tensor in tensors]
    first = tensors[0]
    if None in places:
        return None
    location, offset, _ = places[0]
    end = offset
    for tensor, place in zip(tensors, places, strict=True):
        alike = tensor.data_type == first.data_type and tensor.dims[1:] == first.dims[1:]
        if not alike or place[:2] != (location, end):
            return None
        end += place[2]
    dims = [sum(tensor.dims[0] for tensor in tensors), *first.dims[1:]]
    return _stored(name, first.data_type, dims, (location, offset, end - offset))


def rows(tensor: TensorProto, bounds: tuple[int, int], name: str) -> TensorProto | None:
    """Rows [start, stop) of a matrix in the weights file as a constant; None where it does not lie there."""
    place = _place(tensor)
    if place is None:
        return None
    start, stop = bounds
    location, offset, length = place
    size = length // tensor.dims[0]
    return _stored(name, tensor.data_type, [stop - start, *tensor.dims[1:]],
                   (location, offset + start * size, (stop - start) * size))


_Place = tuple[str, int, int]  # file, offset and length in bytes


def _place(tensor: TensorProto) -> _Place | None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return (entries["location"], int(entries["offset"]), int(entries["length"])) if entries else None


def _stored(name: str, data_type: int, dims: Sequence[int], place: _Place) -> TensorProto:
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in zip(("location", "offset", "length"), place, strict=True):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
