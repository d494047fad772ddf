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
    "IExecutionContext.is_stream_capturable": (ANY, ANY),  # TensorRT-RTX alone has it
}
RTX_LACKS = {"NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "BuilderFlag.FP16", "BuilderFlag.INT8",
             "ITensor.dynamic_range"}
STRONGLY_TYPED = {"10": 1, "11": 0}  # the flag's bit

__all__ = ["RTX_LACKS", "STRONGLY_TYPED", "TOUCHED", "VERSION_BOUND"]
