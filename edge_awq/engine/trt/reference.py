"""Runs a lowered graph on the CPU: what every plugin computes, in float64 numpy, and standard ops as ONNX defines them.

As it stands a tensor has the type that it will have on the device, and plugins round where the kernels store float16:
results, normalized rows, rotated queries and keys. So a missing cast is an error here too. In ``exact`` mode nothing is
rounded and every float is float64, which shows whether the lowered graph means what the canonical one does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_awq.engine.trt.lower import Lowered
from edge_awq.engine.trt.names import PAST_LENGTH, SAMPLE_SETTINGS, SEED, SETTINGS
from edge_awq.engine.trt.reference_ops import OPS
from edge_awq.engine.trt.weight_input import WeightInput, load
from edge_awq.errors import EdgeAwqError
from edge_awq.weights import read_layout


class LoweredReference:
    """A lowered graph with its weights and one KV cache, fed with chunks of tokens as an engine is.

    Attributes:
        settings: how tokens are chosen, float32 [4] as SAMPLE_SETTINGS has them; greedily until somebody changes it.
        seed: of draws, below 2 ** 64.
    """

    def __init__(self, lowered: Lowered, weights: Path, context: int, exact: bool = False) -> None:
        """Read the weights file ``weights``; ``context`` is how many tokens the cache holds.

        Raises:
            EdgeAwqError: the graph's weights are inside.
        """
        if not lowered.weights:
            raise EdgeAwqError("the weights of this graph are inside", hint="lower it with weights as inputs")
        self.length, self._context = 0, context
        self.settings, self.seed = np.zeros(len(SAMPLE_SETTINGS), np.float32), 0
        self._floats = np.float64 if exact else None
        model = _widened(lowered.model) if exact else lowered.model
        self._evaluator = ReferenceEvaluator(model, new_ops=list(OPS))
        layout = read_layout(weights)
        self._weights = {each.name: load(self._as_read(each), weights, layout) for each in lowered.weights}
        self._inputs = {value.name: value.type.tensor_type for value in lowered.model.graph.input}
        self._outputs = [value.name for value in lowered.model.graph.output]
        self._cache = {name: self._empty(name) for name in self._inputs if name.startswith("past_key_") or
                       name.startswith("past_value_")}

    def __call__(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """Append ``ids`` to the cache; returns the outputs other than the cache, such as logits [1, rows, vocab]."""
        feeds = {"input_ids": self._integers("input_ids", [list(ids)]),
                 PAST_LENGTH: self._long(PAST_LENGTH, self.length)}
        if SEED in self._inputs:
            feeds |= {SETTINGS: self._float(self.settings), SEED: self._long(SEED, self.seed)}
        found = self._evaluator.run(None, {**self._weights, **self._cache, **feeds})
        outputs = dict(zip(self._outputs, found, strict=True))
        self._cache = {name: outputs.pop(name.replace("past_", "present_", 1)) for name in self._cache}
        self.length += len(ids)
        return outputs

    def _as_read(self, weight: WeightInput) -> WeightInput:
        is_wide = self._floats and weight.numpy_dtype.kind == "f"
        return dataclasses.replace(weight, dtype="float64") if is_wide else weight

    def _empty(self, name: str) -> np.ndarray:
        """A cache in which nothing is; what is not there is NaN, so that reading it shows, or has NaN as its scale."""
        kind = self._inputs[name]
        one, heads, _, *size = (dim.dim_value for dim in kind.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        return self._float(np.full((one, heads, self._context, *size), 0 if dtype == np.int8 else np.nan, dtype))

    def _float(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self._floats) if self._floats and array.dtype.kind == "f" else array

    def _integers(self, name: str, values: Any) -> np.ndarray:
        return np.array(values, helper.tensor_dtype_to_np_dtype(self._inputs[name].elem_type))

    def _long(self, name: str, value: int) -> np.ndarray:
        """A number of 64 bits, or its two words."""
        number = np.array([value], np.uint64).view(np.int64)
        is_whole = self._inputs[name].elem_type == TensorProto.INT64
        return number if is_whole else number.view(np.int32).reshape(1, 2)


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph on float64: constants are widened and casts between floats are no more than names."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in wide.graph.node:
        if node.op_type == "Cast":
            node.op_type = "Identity"
            del node.attribute[:]
    return wide
