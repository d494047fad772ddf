"""Self-contained engines: the weights become constants again, ranges of the weights file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from edge_awq.engine.trt.draft import Draft, redirect
from edge_awq.engine.trt.weight_input import WeightInput
from edge_awq.errors import EdgeAwqError


def put_inside(draft: Draft, weights: Sequence[WeightInput], places: dict[str, TensorProto]) -> None:
    """Constants in the places of ``weights``; none of their bytes is read.

    Raises:
        EdgeAwqError: the parts of a merged weight are no neighbours in the weights file.
    """
    tensors = draft.graph.tensors()
    for weight in weights:
        redirect(tensors[weight.name], gs.Constant(weight.name, LazyValues(_stored(weight, places))))


def _stored(weight: WeightInput, places: dict[str, TensorProto]) -> TensorProto:
    ranges = [{entry.key: entry.value for entry in places[name].external_data} for name in weight.parts]
    start = end = int(ranges[0]["offset"])
    for part in ranges:
        if int(part["offset"]) != end:
            raise EdgeAwqError(f"{', '.join(weight.parts)} are no neighbours in {part['location']}",
                               hint="build the bundle again, or let the engine take its weights as inputs")
        end += int(part["length"])
    dtype = helper.np_dtype_to_tensor_dtype(weight.numpy_dtype)
    tensor = TensorProto(name=weight.name, data_type=dtype, dims=weight.shape, data_location=TensorProto.EXTERNAL)
    assert end - start == weight.nbytes and math.prod(weight.shape) > 0
    for key, value in (("location", ranges[0]["location"]), ("offset", start), ("length", end - start)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
