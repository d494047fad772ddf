"""Models for tests, and the two implementations of ONNX in which whatever is exported must run as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edge_awq.export import ops

FLOAT32_ROUNDING = 2.0**-24  # largest relative error of one operation

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
Kind = tuple[int, Sequence[int | str]]  # element type and shape


def _onnxruntime(model: str | onnx.ModelProto) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    source = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def _reference(model: str | onnx.ModelProto) -> Run:
    evaluator = ReferenceEvaluator(model)
    return lambda feeds: evaluator.run(None, feeds)


# Each opens a model, given as a file's path or as a proto.
RUNTIMES: dict[str, Callable[[str | onnx.ModelProto], Run]] = {"onnxruntime": _onnxruntime, "reference": _reference}


def one_op_model(
    op: ops.Op,
    attributes: Mapping[str, Any],
    inputs: Mapping[str, Kind],
    outputs: Mapping[str, Kind],
    constants: Sequence[TensorProto] = (),
) -> onnx.ModelProto:
    """A checked model of a single op and its function body."""
    node = helper.make_node(op.name, op.inputs, op.outputs, domain=ops.DOMAIN, **attributes)
    values_in, values_out = (
        [helper.make_tensor_value_info(name, *kind) for name, kind in part.items()] for part in (inputs, outputs)
    )
    model = helper.make_model(
        helper.make_graph([node], op.name, values_in, values_out, list(constants)),
        functions=[ops.function(op)],
        opset_imports=[helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, ops.CONTRACT_VERSION)],
        ir_version=ops.IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """Length of the error over length of the expectation, in float64."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
