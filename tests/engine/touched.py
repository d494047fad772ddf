"""The names of TensorRT's Python interface that the package needs, relative to its module, and who has them."""

import importlib
import importlib.util

# Of the builder of plugin-free engines.
STANDARD = (
    "__version__", "ILogger", "ILogger.Severity.ERROR", "ILogger.Severity.INTERNAL_ERROR",
    "Builder", "Builder.create_network", "Builder.create_builder_config", "Builder.create_optimization_profile",
    "Builder.build_serialized_network", "IHostMemory.nbytes",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "OnnxParser", "OnnxParser.parse_from_file", "OnnxParser.num_errors", "OnnxParser.get_error",
    "ParserError.node_name", "ParserError.node_operator", "ParserError.desc",
    "INetworkDefinition.num_inputs", "INetworkDefinition.get_input", "INetworkDefinition.num_layers",
    "INetworkDefinition.get_layer", "ILayer.type", "ITensor.name", "ITensor.shape", "ITensor.is_shape_tensor",
    "IBuilderConfig.add_optimization_profile",
    "IOptimizationProfile.set_shape", "IOptimizationProfile.set_shape_input",
)
# Of engines with plugins; the module that uses them says it itself.
PLUGINS = (
    "ILogger.Severity.WARNING", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "ITensor.dtype", "OnnxParser.parse",
    "IBuilderConfig.set_flag", "IBuilderConfig.set_preview_feature", "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.set_timing_cache", "IBuilderConfig.get_timing_cache", "IBuilderConfig.progress_monitor",
    "IProgressMonitor", "ITimingCache.serialize", "BuilderFlag.FP16", "PreviewFeature.ALIASED_PLUGIN_IO_10_03",
    "Runtime", "Runtime.deserialize_cuda_engine",
    "ICudaEngine.create_execution_context", "ICudaEngine.num_io_tensors", "ICudaEngine.get_tensor_name",
    "ICudaEngine.get_tensor_mode", "ICudaEngine.get_tensor_dtype", "ICudaEngine.get_tensor_shape",
    "IExecutionContext.set_input_shape", "IExecutionContext.set_tensor_address", "IExecutionContext.execute_async_v3",
    "TensorIOMode.INPUT", "get_plugin_registry", "IPluginRegistry.load_library", "DataType.INT8", "nptype",
)


def _plugin_names() -> tuple[str, ...]:
    folder = importlib.util.find_spec("edge_awq.engine.trt")
    if folder is None or importlib.util.find_spec("edge_awq.engine.trt.bindings") is None:
        return PLUGINS
    return importlib.import_module("edge_awq.engine.trt.bindings").TOUCHED


TOUCHED = tuple(dict.fromkeys((*STANDARD, *_plugin_names())))

ANY = (99, 0)
# Name -> first and last version (major, minor) that has it; what is not here is in all from 8.6 to 11.4.
VERSION_BOUND = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": ((9, 1), ANY),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ((8, 6), (10, 99)),
    "BuilderFlag.FP16": ((8, 6), (10, 99)),
    "BuilderFlag.INT8": ((8, 6), (10, 99)),
    "ITensor.dynamic_range": ((8, 6), (10, 99)),
    "PreviewFeature.ALIASED_PLUGIN_IO_10_03": ((10, 3), ANY),
    "ParserError.node_name": ((10, 3), ANY),
    "ParserError.node_operator": ((10, 3), ANY),
    "IProgressMonitor": ((9, 0), ANY),
    "IBuilderConfig.progress_monitor": ((9, 0), ANY),
}
STRONGLY_TYPED = {"10": 1, "11": 0}  # the flag's bit
