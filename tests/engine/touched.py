"""The names of TensorRT's Python interface that the package needs, relative to its module, and who has them."""

from edge_awq.engine.trt.bindings import TOUCHED

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
    "PreviewFeature.PROFILE_SHARING_0806": ((8, 6), (10, 99)),
    "DataType.INT64": ((10, 0), ANY),
    "ICudaEngine.device_memory_size": ((8, 6), (10, 99)),
    "ICudaEngine.device_memory_size_v2": ((10, 3), ANY),
    "ICudaEngine.create_execution_context_without_device_memory": ((8, 6), (10, 99)),
    "ExecutionContextAllocationStrategy.USER_MANAGED": ((10, 0), ANY),
    "IExecutionContext.set_device_memory": ((10, 3), ANY),
    "ICudaEngine.create_runtime_config": ((10, 11), ANY),
    "IRuntimeConfig.set_execution_context_allocation_strategy": ((10, 11), ANY),
    # TensorRT-RTX alone has these.
    "IExecutionContext.is_stream_capturable": (ANY, ANY),
    "IRuntimeConfig.create_runtime_cache": (ANY, ANY),
    "IRuntimeConfig.set_runtime_cache": (ANY, ANY),
    "IRuntimeCache.serialize": (ANY, ANY),
    "IRuntimeCache.deserialize": (ANY, ANY),
    "BuilderFlag.REQUIRE_USER_ALLOCATION": (ANY, ANY),
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": (ANY, ANY),
    "DynamicShapesKernelSpecializationStrategy.EAGER": (ANY, ANY),
}
RTX_LACKS = {"NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "BuilderFlag.FP16", "BuilderFlag.INT8",
             "ITensor.dynamic_range", "PreviewFeature.PROFILE_SHARING_0806", "ICudaEngine.device_memory_size",
             "ICudaEngine.create_execution_context_without_device_memory"}
# What is returned, where the package relies on it.
RETURNS = {
    "Builder.create_network": "INetworkDefinition", "Builder.build_serialized_network": "IHostMemory",
    "OnnxParser.parse": "bool", "OnnxParser.parse_from_file": "bool",
    "IBuilderConfig.add_optimization_profile": "int", "IBuilderConfig.set_timing_cache": "bool",
    "IBuilderConfig.create_timing_cache": "ITimingCache", "ITimingCache.serialize": "IHostMemory",
    "Runtime.deserialize_cuda_engine": "ICudaEngine", "ICudaEngine.create_execution_context": "IExecutionContext",
    "IExecutionContext.set_input_shape": "bool", "IExecutionContext.set_tensor_address": "bool",
    "IExecutionContext.execute_async_v3": "bool", "IExecutionContext.set_optimization_profile_async": "bool",
    "IExecutionContext.is_stream_capturable": "bool", "ICudaEngine.create_runtime_config": "IRuntimeConfig",
    "IRuntimeConfig.create_runtime_cache": "IRuntimeCache", "IRuntimeConfig.set_runtime_cache": "bool",
    "IRuntimeCache.serialize": "IHostMemory", "IRuntimeCache.deserialize": "bool",
}
# What is taken, itself left out, in one form of the function; by name, or in an order that could be another.
TAKES = {
    "ICudaEngine.create_execution_context": ["strategy"], "IExecutionContext.set_device_memory": ["memory", "size"],
    "IExecutionContext.set_optimization_profile_async": ["profile_index", "stream_handle"],
    "IBuilderConfig.set_timing_cache": ["cache", "ignore_mismatch"], "OnnxParser.parse": ["model", "path"],
    "IOptimizationProfile.set_shape": ["input", "min", "opt", "max"],
    "IOptimizationProfile.set_shape_input": ["input", "min", "opt", "max"],
}
STRONGLY_TYPED = {"10": 1, "11": 0}  # the flag's bit

__all__ = ["RETURNS", "RTX_LACKS", "STRONGLY_TYPED", "TAKES", "TOUCHED", "VERSION_BOUND"]
