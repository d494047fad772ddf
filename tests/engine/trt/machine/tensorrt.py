"""TensorRT for machines that have none: control flow as in fake_tensorrt.py, over whatever libcuda.so.1 is there.

A plan is the lowered graph. An execution context puts one host function on the stream, which runs that graph with
edge_awq.engine.trt.reference on the memory that is bound: captured, launched and replayed by the driver as any other
work. So logits are right exactly when lowering, profiles, weights, addresses, cache and order are.

    EDGE_AWQ_FAKE_TENSORRT   the version that it claims to be
    EDGE_AWQ_FAKE_FAULT      what its engines do wrong: "scale" logits, lose the "past", or choose another "token"
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_model
from onnx.reference import ReferenceEvaluator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fake_tensorrt as fake

from edge_awq.engine.trt.reference import OPS

_cuda = ctypes.CDLL("libcuda.so.1")
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_cuda.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, CALLBACK, ctypes.c_void_p]
ROWS = "most_rows"  # of a plan
_scripted = fake.make_tensorrt(None, os.environ.get("EDGE_AWQ_FAKE_TENSORRT", "8.6.0"))
globals().update({name: value for name, value in vars(_scripted).items() if name != "__spec__"})
FAULT = os.environ.get("EDGE_AWQ_FAKE_FAULT")
FAULTS = {
    None: lambda name, value: value,
    "scale": lambda name, value: value * np.float32(1.01) if name == "logits" else value,
    "past": lambda name, value: np.roll(value, 1, 2) if name == "present_value_1" else value,
    "token": lambda name, value: value[..., ::-1] + 1 if name == "tokens" else value,
}
if _scripted.__version__.startswith("8"):  # which refuses the numpy that may be here; the numbers are its own
    np.__version__ = "1.26"


class OnnxParser(_scripted.OnnxParser):
    def parse(self, data, path=None):
        model = onnx.load_from_string(data)
        if path is not None:
            load_external_data_for_model(model, str(Path(path).parent))
        self.network.data = model.SerializeToString()
        return super().parse(data, path)


class Builder(_scripted.Builder):
    def build_serialized_network(self, network, config):
        if super().build_serialized_network(network, config) is None:
            return None
        model = onnx.load_from_string(network.data)
        onnx.helper.set_model_props(model, {ROWS: str(config.profiles[0].shapes["input_ids"][2][1])})
        return memoryview(model.SerializeToString())


class Runtime(_scripted.Runtime):
    def deserialize_cuda_engine(self, plan):
        return ICudaEngine(onnx.load_from_string(bytes(plan)), self.log)  # of any buffer, as the real one takes it


class ICudaEngine(_scripted.ICudaEngine):
    """An engine whose tensors are those of a graph."""

    def __init__(self, model, log):
        tensors = [[*_described(value), is_input] for values, is_input in
                   ((model.graph.input, True), (model.graph.output, False)) for value in values]
        rows = int(next(entry.value for entry in model.metadata_props if entry.key == ROWS))
        super().__init__({"tensors": tensors, "rows": [rows]}, None, log, {})
        self.evaluator, self.outputs = ReferenceEvaluator(model, new_ops=list(OPS)), model.graph.output

    def new_context(self, kind, cache=None):
        return IExecutionContext(self)


def _described(value):
    tensor = fake.ITensor(value)
    return tensor.name, tensor.shape, int(tensor.dtype)


class IExecutionContext(_scripted.IExecutionContext):
    """Sizes that vary are those that were set when the work was put on the stream."""

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return True

    def execute_async_v3(self, stream):
        assert set(self.addresses) == set(self.engine.tensors), "a tensor has no address"
        shapes = {name: self._shape(name) for name, (_, _, is_input) in self.engine.tensors.items() if is_input}
        self._kept = [*getattr(self, "_kept", []), CALLBACK(lambda _: self._run(shapes))]  # a graph calls it again
        return _cuda.cuLaunchHostFunc(stream, self._kept[-1], None) == 0

    def _shape(self, name):
        shape = self.shapes.get(name, self.engine.tensors[name][0])
        assert -1 not in shape, f"{name} has no shape"
        return tuple(shape)

    def _run(self, shapes):
        try:
            feeds = {name: self._memory(name, shape).copy() for name, shape in shapes.items()}
            found = dict(zip([each.name for each in self.engine.outputs], self.engine.evaluator.run(None, feeds),
                             strict=True))
            for name, value in found.items():
                dtype = value.dtype if value.dtype == np.int64 else None  # TensorRT 8 calls it two INT32
                self._memory(name, value.shape, dtype)[...] = FAULTS[FAULT](name, value)
        except Exception:  # nothing may pass through the driver; what is bound keeps its old values
            traceback.print_exc()

    def _memory(self, name, shape, dtype=None):
        dtype = np.dtype(dtype or fake.TYPES[self.engine.get_tensor_dtype(name)])
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype).reshape(shape)
