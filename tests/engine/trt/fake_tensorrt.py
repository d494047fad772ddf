"""TensorRT as far as edge-awq touches it, over the fake GPU: plans are JSON, and engines compute a toy model.

The toy's caches hold token ids, and its logits are a function of all tokens so far and of the weights' bytes; so
chunks, positions, addresses and weights are right exactly when the logits are.
"""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from fake_kernels import IRuntimeCache, IRuntimeConfig

VOCAB = 32


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


class ITensor:
    name = shape = dtype = dynamic_range = is_shape_tensor = None

    def __init__(self, value):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        self.name, self.is_shape_tensor = value.name, value.name == "num_logits"
        self.dtype = next(kind for kind, numpy in TYPES.items() if numpy == dtype)
        self.shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1
                           for dim in value.type.tensor_type.shape.dim)


class INetworkDefinition:
    def __init__(self, flags):
        self.flags, self.inputs, self.outputs = flags, [], []

    @property
    def num_inputs(self):
        return len(self.inputs)

    def get_input(self, index):
        return self.inputs[index]

    @property
    def num_outputs(self):
        return len(self.outputs)

    def get_output(self, index):
        return self.outputs[index]

    @property
    def num_layers(self):
        return 1

    def get_layer(self, index):
        return ILayer()


class ILayer:
    type = SimpleNamespace(name="TOY")


class ParserError:
    def __init__(self, text):
        self.text = text

    def desc(self):
        return self.text

    def node_operator(self):
        return "Toy"

    def node_name(self):
        return "toy"


class IProgressMonitor:
    def __init__(self):
        self.is_initialized = True


class ITimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return memoryview(self.data or b"timings")


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, smallest, usual, largest):
        self.shapes[name] = [smallest, usual, largest]

    def set_shape_input(self, name, smallest, usual, largest):
        self.shapes[name] = [smallest, usual, largest]


class IBuilderConfig:
    progress_monitor = None

    def __init__(self, script):
        self.script = script
        self.flags, self.previews, self.profiles, self.cache, self.tactic_sources = [], {}, [], None, None

    def set_flag(self, flag):
        self.flags.append(flag)

    def set_tactic_sources(self, sources):
        self.tactic_sources = sources
        return True

    def set_preview_feature(self, feature, value):
        self.previews[feature] = value

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return ITimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache.data == b"other":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


def make_tensorrt(cuda, version="10.3.0", script=None):
    """The module. ``script``: what goes wrong, by name; it also collects what was asked for."""
    script = script if script is not None else {}
    script.setdefault("configs", [])
    script.setdefault("networks", [])
    libraries = []

    class Builder:
        def __init__(self, log):
            assert log.is_initialized
            if "no_builder" in script:
                log.log(ILogger.Severity.ERROR, script["no_builder"])
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self.log = log

        def create_network(self, flags):
            script["networks"].append(INetworkDefinition(flags))
            return script["networks"][-1]

        def create_builder_config(self):
            script["configs"].append(IBuilderConfig(script))
            return script["configs"][-1]

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            return build(self.log, network, config, script)

    class OnnxParser:
        num_errors = 0

        def __init__(self, network, log):
            self.network = network

        def parse(self, data, path=None):
            script["path"] = path
            if "parser" in script:
                self.num_errors = 1
                return False
            return self._read(onnx.load_from_string(data).graph)

        def parse_from_file(self, path):
            return self.parse(Path(path).read_bytes(), path)

        def _read(self, graph):
            self.network.inputs = [ITensor(value) for value in graph.input]
            self.network.outputs = [ITensor(value) for value in graph.output]
            return True

        def get_error(self, index):
            return ParserError(script["parser"])

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, plan):
            script["loaded"] = script.get("loaded", 0) + 1
            if "engine" in script:
                self.log.log(ILogger.Severity.ERROR, script["engine"])
                return None
            return module.ICudaEngine(json.loads(bytes(plan)), cuda, self.log, script)

    class IPluginRegistry:
        def load_library(self, path):
            if "registry" in script or path in libraries:  # the real ones refuse what they have, too
                return None
            libraries.append(path)
            script["library"] = path
            return object()

    is_old = version.startswith("8")
    module = SimpleNamespace(
        __version__=version, ILogger=ILogger, Builder=Builder, OnnxParser=OnnxParser, Runtime=Runtime,
        NetworkDefinitionCreationFlag=SimpleNamespace(**({"EXPLICIT_BATCH": 0} if is_old else {"STRONGLY_TYPED": 1})),
        INetworkDefinition=INetworkDefinition, ITensor=ITensor, ParserError=ParserError, IBuilderConfig=IBuilderConfig,
        ITimingCache=ITimingCache, IOptimizationProfile=IOptimizationProfile, DataType=DataType,
        ILayer=ILayer, IHostMemory=memoryview,
        ICudaEngine=ICudaEngine, IExecutionContext=IExecutionContext, IPluginRegistry=IPluginRegistry,
        TensorIOMode=TensorIOMode, nptype=TYPES.__getitem__, get_plugin_registry=IPluginRegistry,
        BuilderFlag=SimpleNamespace(FP16="fp16", INT8="int8"))
    if not is_old:
        module.IProgressMonitor = IProgressMonitor
        module.PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased")
    if version.startswith("1."):
        module.ICudaEngine, module.IRuntimeConfig, module.IRuntimeCache = RtxCudaEngine, IRuntimeConfig, IRuntimeCache
    return module


def build(log, network, config, script):
    """Steps of two nested phases, then a plan, or what the script says instead."""
    if config.progress_monitor is not None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        for outer in range(2):
            monitor.phase_start("Tactics", "Building", 4)
            for step in range(4):
                if "during" in script:
                    script.pop("during")()
                script["steps"] = script.get("steps", 0) + 1
                if not monitor.step_complete("Tactics", step):
                    return None
            monitor.phase_finish("Tactics")
            monitor.step_complete("Building", outer)
        monitor.phase_finish("Building")
    rows = [profile.shapes["input_ids"][2][1] for profile in config.profiles]
    failure = script.get("build") or (script.get("prefill") if rows[0] > 8 else None)
    if failure:
        log.log(ILogger.Severity.ERROR, failure)
        return None
    tensors = [[each.name, each.shape, int(each.dtype), each in network.inputs]
               for each in (*network.inputs, *network.outputs)]
    return memoryview(json.dumps({"tensors": tensors, "rows": rows}).encode())


class ICudaEngine:
    def __init__(self, plan, cuda, log, script):
        self.tensors = {name: (tuple(shape), dtype, is_input) for name, shape, dtype, is_input in plan["tensors"]}
        self.rows, self.cuda, self.log, self.script = plan["rows"], cuda, log, script
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

    def create_execution_context(self, *, runtime_config=None):
        if "context" in self.script:
            self.log.log(ILogger.Severity.ERROR, self.script["context"])
            return None
        return IExecutionContext(self, runtime_config and runtime_config.cache)


class RtxCudaEngine(ICudaEngine):
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
        return fits and (name != "input_ids" or shape[1] <= self.engine.rows[self.profile])

    def execute_async_v3(self, stream):
        engine = self.engine
        assert stream == engine.cuda.stream and set(self.addresses) == set(engine.tensors)
        if "execute" in engine.script:
            engine.log.log(ILogger.Severity.ERROR, engine.script["execute"])
            return False
        rows, context = self.shapes["input_ids"][1], self.shapes["past_key_0"][2]  # fixed once captured
        self.compile_kernels([self.profile, rows])
        wanted = range(rows) if engine.tensors["logits"][0][1] == -1 else [rows - 1]
        if "num_logits" in self.addresses:  # of the host, so read now; then fixed, too
            wanted = range(rows)[-ctypes.c_int64.from_address(self.addresses["num_logits"]).value :]
        engine.cuda.enqueue(lambda: self.compute(rows, context, wanted))
        return True

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
            if is_input and name not in ("input_ids", "past_length", "num_logits") and not name.startswith("past_"))
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
            words[:] = np.argmax(found, axis=1)
