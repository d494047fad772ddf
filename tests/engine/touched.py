"""The names of TensorRT's Python interface that building and running an engine needs, relative to its module."""

TOUCHED = (
    "__version__",
    "Logger", "Logger.VERBOSE", "Logger.INFO", "Logger.WARNING", "Logger.ERROR", "ILogger", "ILogger.Severity",
    "Builder", "Builder.create_network", "Builder.create_builder_config", "Builder.create_optimization_profile",
    "Builder.build_serialized_network",
    "NetworkDefinitionCreationFlag", "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "INetworkDefinition.num_inputs", "INetworkDefinition.get_input", "INetworkDefinition.num_outputs",
    "INetworkDefinition.get_output",
    "ITensor.name", "ITensor.shape", "ITensor.dtype",
    "OnnxParser", "OnnxParser.parse", "OnnxParser.num_errors", "OnnxParser.get_error",
    "IBuilderConfig.set_memory_pool_limit", "IBuilderConfig.add_optimization_profile", "IBuilderConfig.set_flag",
    "IBuilderConfig.set_preview_feature", "IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache",
    "IBuilderConfig.get_timing_cache", "IBuilderConfig.progress_monitor", "ITimingCache.serialize",
    "MemoryPoolType.WORKSPACE", "BuilderFlag.FP16", "PreviewFeature.ALIASED_PLUGIN_IO_10_03",
    "IProgressMonitor",
    "IOptimizationProfile.set_shape",
    "Runtime", "Runtime.deserialize_cuda_engine",
    "ICudaEngine.create_execution_context", "ICudaEngine.num_io_tensors", "ICudaEngine.get_tensor_name",
    "ICudaEngine.get_tensor_mode", "ICudaEngine.get_tensor_dtype", "ICudaEngine.get_tensor_shape",
    "ICudaEngine.num_optimization_profiles",
    "IExecutionContext.set_input_shape", "IExecutionContext.set_tensor_address",
    "IExecutionContext.set_optimization_profile_async", "IExecutionContext.execute_async_v3",
    "IExecutionContext.infer_shapes",
    "TensorIOMode.INPUT", "TensorIOMode.OUTPUT",
    "get_plugin_registry", "IPluginRegistry.load_library",
    "DataType.FLOAT", "DataType.HALF", "DataType.INT8", "DataType.INT32", "DataType.INT64",
    "nptype",
)

ANY = (99, 0)
# Name -> first and last version (major, minor) that has it; what is not here is in all from 8.6 to 11.4.
VERSION_BOUND = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": ((9, 1), ANY),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ((8, 6), (10, 99)),
    "BuilderFlag.FP16": ((8, 6), (10, 99)),
    "PreviewFeature.ALIASED_PLUGIN_IO_10_03": ((10, 3), ANY),
    "IProgressMonitor": ((9, 0), ANY),
    "IBuilderConfig.progress_monitor": ((9, 0), ANY),
    "DataType.INT64": ((9, 0), ANY),
}
STRONGLY_TYPED = {"10": 1, "11": 0}  # the flag's bit
