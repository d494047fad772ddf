"""A lowered graph on the disk: ``standard.onnx`` and beside it ``standard.weights``, which holds its large constants.

TensorRT puts int4 weights into the engine itself, and only as constants. So the weights are written a second time, in
its coding, and can be deleted once the engine is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx

from edge_awq.bundle import write_bytes
from edge_awq.engine.standard.constants import convert, read_bytes
from edge_awq.engine.standard.lower import Lowered
from edge_awq.errors import EdgeAwqError

GRAPH, WEIGHTS = "standard.onnx", "standard.weights"
ALIGNMENT = 4096  # of a constant in its file: a page


def write(lowered: Lowered, weights: Path, folder: Path) -> Path:
    """Write the graph and its constants, converted from the bundle's ``weights`` one at a time; returns the graph.

    Raises:
        EdgeAwqError: the folder cannot be written, or is full.
    """
    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    graph, data = folder / GRAPH, folder / WEIGHTS
    partial = data.with_name(data.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                _write_constants(model, lowered, weights, file)
            partial.replace(data)
        finally:
            partial.unlink(missing_ok=True)
        write_bytes(graph, model.SerializeToString())
    except OSError as error:
        raise EdgeAwqError(f"{folder}: the plugin-free graph cannot be written ({error})",
                           hint="free space, or choose another folder") from error
    return graph


def _write_constants(model: onnx.ModelProto, lowered: Lowered, weights: Path, file: BinaryIO) -> None:
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            continue
        values = convert(read_bytes(tensor, weights), lowered.stored_as[tensor.name], tensor.data_type)
        file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
        _describe(tensor, file.tell(), values)
        file.write(np.ascontiguousarray(values).data)


def _describe(tensor: onnx.TensorProto, offset: int, values: np.ndarray) -> None:
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
