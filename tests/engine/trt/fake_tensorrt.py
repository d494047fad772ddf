"""TensorRT as far as edge-awq touches it, over the fake GPU: plans are JSON, and engines compute a toy model.

The toy's caches hold token ids, and its logits are a function of all tokens so far and of the weights' bytes; so
chunks, positions, addresses and weights are right exactly when the logits are.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import onnx
from fake_engine import TYPES, VOCAB, DataType, ILogger, TensorIOMode, by_version, toy_logits


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

    def __init__(self, log):
        self.log = log
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
            self.log.log(ILogger.Severity.ERROR, "timings of another GPU")
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
            script["configs"].append(IBuilderConfig(self.log))
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
        PreviewFeature=SimpleNamespace(PROFILE_SHARING_0806="shared"), IPluginRegistry=IPluginRegistry,
        TensorIOMode=TensorIOMode, get_plugin_registry=IPluginRegistry,
        BuilderFlag=SimpleNamespace(FP16="fp16", INT8="int8"))
    if not is_old:
        module.IProgressMonitor = IProgressMonitor
        module.PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased")
        module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="lent")
    vars(module).update(by_version(version))
    return module


def end_of_step(monitor, step, script):
    """Whether to go on. As in the binding no exception passes through, and one means no."""
    try:
        if "during" in script:
            script.pop("during")()
        script["steps"] = script.get("steps", 0) + 1
        return monitor.step_complete("Tactics", step)
    except BaseException:
        return False


def build(log, network, config, script):
    """Steps of two nested phases, then a plan, or what the script says instead."""
    if config.progress_monitor is not None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        for outer in range(2):
            monitor.phase_start("Tactics", "Building", 4)
            for step in range(4):
                if not end_of_step(monitor, step, script):
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
    return memoryview(json.dumps({"tensors": tensors, "rows": rows,
                                  "shares_profiles": "shared" in config.previews}).encode())


__all__ = ["TYPES", "VOCAB", "make_tensorrt", "toy_logits"]
