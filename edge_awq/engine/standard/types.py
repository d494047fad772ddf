"""The canonical graph computes in float32; here it learns another type. Constants change when they are written."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_awq.engine.standard.options import StandardOptions

LOGITS = "logits"


def set_types(model: onnx.ModelProto, options: StandardOptions) -> None:
    """Let every float32 tensor be of the activations' type, but for the logits, which are cast back at the end."""
    wanted = options.element_type
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            _set_type(tensor, wanted)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = wanted
        if node.op_type == "Identity" and list(node.output) == [LOGITS]:
            node.CopyFrom(helper.make_node("Cast", node.input, node.output, node.name, to=TensorProto.FLOAT))
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name != LOGITS:
            value.type.tensor_type.elem_type = wanted


def _set_type(tensor: TensorProto, wanted: int) -> None:
    """A constant in the weights file is renamed only: ``write`` converts what it says."""
    if tensor.external_data:
        tensor.data_type = wanted
    else:
        tensor.CopyFrom(constant(tensor.name, numpy_helper.to_array(tensor), wanted))


def constant(name: str, values: np.ndarray, element_type: int) -> TensorProto:
    """A small constant inside the graph."""
    return numpy_helper.from_array(np.asarray(values, helper.tensor_dtype_to_np_dtype(element_type)), name)
