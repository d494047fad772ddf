"""TensorRT's engines and execution contexts, for fake_tensorrt.py, and the toy model that they compute."""

from __future__ import annotations

import ctypes
import enum
import weakref
from types import SimpleNamespace

import numpy as np
from fake_kernels import IRuntimeCache, IRuntimeConfig

from edge_awq.engine.trt.reference_sample import draw

VOCAB = 32
ACTIVATION_BYTES = 600  # of an execution context
INTEGERS_AND_SETTINGS = ("input_ids", "past_length", "num_logits", "sampling", "seed")  # inputs that are no weights


def toy_logits(tokens, weights_sum):
    """Logits [VOCAB] float32 after ``tokens``."""
    state = weights_sum + sum((place + 1) * (token + 3) for place, token in enumerate(tokens))
    return np.array([(state * (j + 1) + j * j) % 97 for j in range(VOCAB)], np.float32)


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self):
        self.is_initialized = True  # as the binding insists on


class DataType(enum.IntEnum):
    FLOAT, HALF, INT8, INT32, INT64 = 0, 1, 2, 3, 8


TYPES = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8, DataType.INT32: np.int32,
         DataType.INT64: np.int64}


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class ICudaEngine:
    def __init__(self, plan, cuda, log, script):
        self.tensors = {name: (tuple(shape), dtype, is_input) for name, shape, dtype, is_input in plan["tensors"]}
        self.rows, self.cuda, self.log, self.script = plan["rows"], cuda, log, script
        self.shares_profiles = plan.get("shares_profiles", True)
        script.setdefault("alive", weakref.WeakSet()).add(self)

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if self.tensors[name][2] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType(self.tensors[name][1])

    def get_tensor_shape(self, name):
        return self.tensors[name][0]

    def new_context(self, kind, cache=None):
        if "context" in self.script:
            self.log.log(ILogger.Severity.ERROR, self.script["context"])
            return None
        return kind(self, cache)


class CudaEngine8(ICudaEngine):
    """TensorRT 8.6's: a second context has no profile, unless the engine was built for that."""

    device_memory_size = ACTIVATION_BYTES

    def create_execution_context_without_device_memory(self):
        context = self.new_context(ExecutionContext8)
        others = [each for each in self.script["alive"] if getattr(each, "engine", None) is self]
        if len(others) > 1:
            context.profile, context._may_share = None, self.shares_profiles
        return context


class CudaEngine10(ICudaEngine):
    """From TensorRT 10 on."""

    device_memory_size_v2 = ACTIVATION_BYTES

    def create_execution_context(self, *, strategy=None, runtime_config=None):
        assert (runtime_config.strategy if runtime_config else strategy) == "lent"
        context = self.new_context(ExecutionContext10, runtime_config and runtime_config.cache)
        if context and runtime_config:
            context.kernels_for = runtime_config.dynamic_shapes_kernel_specialization_strategy
        return context


class CudaEngineRtx(CudaEngine10):
    """TensorRT-RTX's: kernels are compiled for each shape that is run, and those in a cache are not."""

    def create_runtime_config(self):
        return None if "no_config" in self.script else IRuntimeConfig(self)


class IExecutionContext:
    def __init__(self, engine, cache=None):
        self.engine, self.addresses, self.shapes, self.profile = engine, {}, {}, 0
        self.kernels = [] if cache is None else cache.kernels
        engine.script["alive"].add(self)
        if "capturable" in engine.script:
            self.is_stream_capturable = lambda stream: engine.script["capturable"]

    device_memory, kernels_for = None, "eager"

    def set_optimization_profile_async(self, profile, stream):
        assert stream == self.engine.cuda.stream
        self.profile = profile
        return profile < len(self.engine.rows)

    def set_tensor_address(self, name, address):
        assert address % 256 == 0 or name == "num_logits"
        self.addresses[name] = address
        return name in self.engine.tensors

    def set_input_shape(self, name, shape):
        fits = all(wanted in (-1, size) for wanted, size in zip(self.engine.tensors[name][0], shape, strict=True))
        self.shapes[name] = shape
        return fits and self.profile is not None and (name != "input_ids" or shape[1] <= self.engine.rows[self.profile])

    def execute_async_v3(self, stream):
        engine = self.engine
        assert stream == engine.cuda.stream and set(self.addresses) == set(engine.tensors)
        if "execute" in engine.script:
            engine.log.log(ILogger.Severity.ERROR, engine.script["execute"])
            return False
        rows, context = self.shapes["input_ids"][1], self.shapes["past_key_0"][2]  # fixed once captured
        self.compile_kernels([self.profile, rows])
        assert self.kernels_for == "eager" or not engine.cuda.is_capturing, "those for any shape would be captured"
        engine.cuda.bytes_at(self.device_memory, ACTIVATION_BYTES)
        wanted = range(rows) if engine.tensors["logits"][0][1] == -1 else [rows - 1]
        if "num_logits" in self.addresses:  # of the host, so read now; then fixed, too
            wanted = range(rows)[-ctypes.c_int64.from_address(self.addresses["num_logits"]).value :]
        state = self.state()

        def work():
            assert self.state() == state, "a context that was captured, or that is at work, was changed"
            self.compute(rows, context, wanted)

        engine.cuda.enqueue(work)
        return True

    def state(self):
        """What nobody may change as long as a graph has it."""
        return self.profile, self.device_memory, dict(self.shapes), dict(self.addresses)

    def compile_kernels(self, shape):
        """As TensorRT-RTX does, where there are none yet."""
        if shape not in self.kernels:
            self.kernels.append(shape)
            self.engine.script.setdefault("compiled", []).append(shape)

    def array(self, name, shape):
        """A tensor's device memory."""
        dtype = np.dtype(TYPES[self.engine.get_tensor_dtype(name)])
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return self.engine.cuda.bytes_at(self.addresses[name], nbytes).view(dtype).reshape(shape)

    def compute(self, rows, context, wanted):
        tensors = self.engine.tensors
        ids = self.array("input_ids", (rows,)).astype(int)
        past = int(self.engine.cuda.bytes_at(self.addresses["past_length"], 8).view("<i8")[0])
        assert past >= 0 and past + rows <= context
        weights = sum(int(self.engine.cuda.bytes_at(self.addresses[name], int(np.prod(shape)) * np.dtype(
            TYPES[DataType(dtype)]).itemsize).astype(int).sum()) for name, (shape, dtype, is_input) in tensors.items()
            if is_input and name not in INTEGERS_AND_SETTINGS and not name.startswith("past_"))
        caches = {}
        for name in (name for name in tensors if name.startswith("past_") and name != "past_length"):
            assert self.addresses[name] == self.addresses[name.replace("past_", "present_")], "the cache is in place"
            caches[name] = self.array(name, (1, 1, context, *tensors[name][0][3:]))[0, 0]
            assert "num_logits" not in tensors or np.isfinite(caches[name]).all(), "masked, but read"
            caches[name][past : past + rows] = 0.5 if "_scale_" in name else ids[:, None]
        cache = caches["past_key_0"][:, 0] * (2 * caches.get("past_key_scale_0", np.array(0.5)))
        found = [toy_logits([int(token) for token in cache[: past + row + 1]], weights) for row in wanted]
        self.array("logits", (len(found), VOCAB))[:] = found
        if "tokens" in tensors:  # INT64, or pairs of INT32, low word first: the same bytes
            words = self.engine.cuda.bytes_at(self.addresses["tokens"], 8 * len(found)).view("<i8")
            settings = self.array("sampling", (4,))
            (seed,) = self.engine.cuda.bytes_at(self.addresses["seed"], 8).view("<i8")
            words[:] = [draw(row, settings, int(seed), past + place) for place, row in enumerate(found)]


class ExecutionContext8(IExecutionContext):
    """TensorRT 8.6's."""

    _may_share = True

    def set_optimization_profile_async(self, profile, stream):
        return self._may_share and super().set_optimization_profile_async(profile, stream)


class ExecutionContext10(IExecutionContext):
    """From TensorRT 10 on."""

    def set_device_memory(self, address, nbytes):
        assert nbytes >= ACTIVATION_BYTES
        self.device_memory = address


def by_version(version):
    """The module's classes that are not the same in every TensorRT."""
    if version.startswith("8"):
        return {"ICudaEngine": CudaEngine8, "IExecutionContext": ExecutionContext8}
    if version.startswith("1."):
        return {"ICudaEngine": CudaEngineRtx, "IExecutionContext": ExecutionContext10,
                "IRuntimeConfig": IRuntimeConfig, "IRuntimeCache": IRuntimeCache,
                "DynamicShapesKernelSpecializationStrategy": SimpleNamespace(EAGER="eager"),
                "BuilderFlag": SimpleNamespace(REQUIRE_USER_ALLOCATION="user allocation")}
    return {"ICudaEngine": CudaEngine10, "IExecutionContext": ExecutionContext10}
