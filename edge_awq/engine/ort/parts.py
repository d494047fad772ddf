"""A graph run part after part, so that only one part's constants are in memory, prepared for their kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from edge_awq.engine.ort.session import SessionSettings, create_session

_Nodes = dict[str, NodeProto]  # by their first output, in order

PART_BYTES = 512 * 2**20  # of constants; kernels keep up to two prepared copies of them


def run_in_parts(
    model: onnx.ModelProto, weights: Path, feeds: dict[str, np.ndarray], part_bytes: int = PART_BYTES
) -> list[np.ndarray]:
    """The outputs of ``model`` for ``feeds``, as one session would give them.

    Args:
        model: nodes in an order in which each comes after what it reads, none with a graph inside.
        weights: the file that the constants are ranges of.
        part_bytes: constants of one part at most, where a single node has not more.

    Raises:
        EdgeAwqError: onnxruntime refuses the graph, or its constants are missing.
    """
    outputs = [value.name for value in model.graph.output]
    parts = list(_parts(model, part_bytes))
    values = dict(feeds)
    for index, nodes in enumerate(parts):
        later = {name for part in parts[index + 1 :] for node in part for name in node.input} | set(outputs)
        given = [name for node in nodes for name in node.output if name and name in later]  # "": left out
        part = _part(model, nodes, values, given)
        session = create_session(part.SerializeToString(), weights, SessionSettings())
        values |= zip(given, session.run(given, {value.name: values[value.name] for value in part.graph.input}),
                      strict=True)
        values = {name: value for name, value in values.items() if name in later}
    return [values[name] for name in outputs]


def _parts(model: onnx.ModelProto, part_bytes: int) -> Iterator[list[NodeProto]]:
    """The nodes, in order, cut where the next one's constants would not fit any more.

    A node that computes a constant stands in every part that reads it: some kernels need to see constants as such.
    """
    sizes = {tensor.name: _bytes(tensor) for tensor in model.graph.initializer}
    origins: dict[str, tuple[_Nodes, set[str]]] = {name: ({}, {name}) for name in sizes}  # of every constant
    nodes: _Nodes = {}
    used: set[str] = set()
    for node in model.graph.node:
        makers: _Nodes = {}
        own: set[str] = set()
        for name in origins.keys() & set(node.input):
            makers |= origins[name][0]
            own |= origins[name][1]
        made = makers | {node.output[0]: node}
        if all(name in origins for name in node.input if name):
            origins |= dict.fromkeys(node.output, (made, own))
            continue
        if nodes and sum(sizes[name] for name in used | own) > part_bytes:
            yield list(nodes.values())
            nodes, used = {}, set()
        nodes |= made
        used |= own
    yield list(nodes.values())


def _bytes(tensor: TensorProto) -> int:
    external = {entry.key: entry.value for entry in tensor.external_data}
    return int(external.get("length", len(tensor.raw_data)))


def _part(model: onnx.ModelProto, nodes: Sequence[NodeProto], values: dict[str, np.ndarray],
          outputs: Sequence[str]) -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.graph.CopyFrom(helper.make_graph(
        nodes, model.graph.name,
        inputs=[_input(name, value) for name, value in values.items() if name in read],
        outputs=[ValueInfoProto(name=name) for name in outputs],  # onnxruntime finds their types itself
        initializer=[tensor for tensor in model.graph.initializer if tensor.name in read],
    ))
    return part


def _input(name: str, value: np.ndarray) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
