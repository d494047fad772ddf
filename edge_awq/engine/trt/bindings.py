"""TensorRT's Python package: which versions are used, what is touched of it, what it says.

Not yet verified on device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edge_awq import plugins
from edge_awq.errors import EdgeAwqError
from edge_awq.lazy import require

# Every name of the package that build and run use, with plugins or without, relative to the module; optional ones are
# looked up by name.
TOUCHED = (
    "__version__",
    "ILogger", "ILogger.Severity.INTERNAL_ERROR", "ILogger.Severity.ERROR", "ILogger.Severity.WARNING",
    "Builder", "Builder.create_network", "Builder.create_builder_config", "Builder.create_optimization_profile",
    "Builder.build_serialized_network",
    "NetworkDefinitionCreationFlag", "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "INetworkDefinition.num_inputs", "INetworkDefinition.get_input", "INetworkDefinition.num_outputs",
    "INetworkDefinition.get_output", "ITensor.name", "ITensor.shape", "ITensor.dtype", "ITensor.dynamic_range",
    "INetworkDefinition.num_layers", "INetworkDefinition.get_layer", "ILayer.type", "ITensor.is_shape_tensor",
    "OnnxParser", "OnnxParser.parse", "OnnxParser.parse_from_file", "OnnxParser.num_errors", "OnnxParser.get_error",
    "ParserError.desc", "ParserError.node_name", "ParserError.node_operator",
    "IBuilderConfig.add_optimization_profile", "IBuilderConfig.set_flag", "IBuilderConfig.set_preview_feature",
    "IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache", "IBuilderConfig.get_timing_cache",
    "IBuilderConfig.progress_monitor", "IBuilderConfig.set_tactic_sources", "IProgressMonitor",
    "ITimingCache.serialize",
    "BuilderFlag", "BuilderFlag.FP16", "BuilderFlag.INT8", "PreviewFeature", "PreviewFeature.ALIASED_PLUGIN_IO_10_03",
    "IOptimizationProfile.set_shape", "IOptimizationProfile.set_shape_input", "IHostMemory.nbytes", "DataType.INT8",
    "PreviewFeature.PROFILE_SHARING_0806",
    *(f"DataType.{name}" for name in ("FLOAT", "HALF", "INT32", "INT64")),
    "Runtime", "Runtime.deserialize_cuda_engine",
    "ICudaEngine.create_execution_context", "ICudaEngine.num_io_tensors", "ICudaEngine.get_tensor_name",
    "ICudaEngine.get_tensor_mode", "ICudaEngine.get_tensor_dtype", "ICudaEngine.get_tensor_shape",
    "IExecutionContext.set_input_shape", "IExecutionContext.set_tensor_address", "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_optimization_profile_async", "IExecutionContext.is_stream_capturable",
    "ICudaEngine.device_memory_size", "ICudaEngine.device_memory_size_v2",
    "ICudaEngine.create_execution_context_without_device_memory", "ExecutionContextAllocationStrategy.USER_MANAGED",
    "IExecutionContext.device_memory", "IExecutionContext.set_device_memory",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "ICudaEngine.create_runtime_config", "IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache",
    "IRuntimeCache.serialize", "IRuntimeCache.deserialize", "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy", "DynamicShapesKernelSpecializationStrategy.EAGER",
    "TensorIOMode.INPUT", "get_plugin_registry", "IPluginRegistry.load_library",
)

OLDEST, OLDEST_10, NEWEST_MAJOR = (8, 6), (10, 3), 11
MOST_ERRORS = 100  # that a log keeps: a process may run for months
_LOGS: list[tuple[ModuleType, Any]] = []  # of each TensorRT in this process
_LIBRARIES: list[tuple[ModuleType, Path]] = []  # that are in its registry
SUPPORTED = "TensorRT 8.6, 10.3 and later, and 11"


@dataclass(frozen=True)
class Toolkit:
    """TensorRT, loaded and checked; for engines with plugins, with the plugin library in its registry.

    Attributes:
        version: such as (10, 3, 0).
        log: an ILogger that keeps what TensorRT says.
        name: "TensorRT" or "TensorRT-RTX".
    """

    trt: ModuleType
    version: tuple[int, ...]
    log: Any
    name: str = "TensorRT"

    @property
    def title(self) -> str:
        """Such as "TensorRT 10.3.0"."""
        return f"{self.name} {self.version_text}"

    @property
    def key_name(self) -> str:
        """As part of a file's name."""
        return self.name.lower().replace("-", "_")

    @property
    def version_text(self) -> str:
        """Such as "10.3.0"."""
        return ".".join(map(str, self.version))

    @property
    def major(self) -> int:
        """The version's first number."""
        return self.version[0]

    def why(self) -> str:
        """The first error since the last ``forget``, or the last warning; empty if there was none."""
        return self.log.why()


def load_toolkit(library: Path | None = None) -> Toolkit:
    """Import TensorRT and give it the plugins of ``library``; None finds it.

    Raises:
        EdgeAwqError: as ``import_tensorrt``, or the plugin library does not load.
    """
    toolkit = import_tensorrt()
    _load_plugins(toolkit, library or plugins.find_library())
    return toolkit


def import_tensorrt() -> Toolkit:
    """TensorRT as it is, without plugins.

    Raises:
        EdgeAwqError: it is missing or of a version that is not supported.
    """
    try:
        trt = require("tensorrt", "trt")
    except EdgeAwqError as error:
        raise EdgeAwqError("TensorRT's Python package 'tensorrt' is not installed",
                           hint="on a Jetson it comes with JetPack (sudo apt install nvidia-jetpack; a virtual "
                                "environment needs --system-site-packages), elsewhere: pip install 'edge-awq[trt]'"
                           ) from error
    except ImportError as error:  # the binding is there, a library below it is not
        raise EdgeAwqError(f"TensorRT cannot be loaded: {error}",
                           hint="install TensorRT's libraries, or let LD_LIBRARY_PATH name their folder") from error
    version = check_version(trt.__version__, np.__version__)
    return Toolkit(trt, version, log_of(trt))


def check_version(tensorrt: str, numpy: str) -> tuple[int, ...]:
    """The version as numbers.

    Raises:
        EdgeAwqError: it is not supported, or not with this numpy.
    """
    version = tuple(int(number) for number in re.findall(r"\d+", tensorrt)[:3])
    is_new = version[0] > NEWEST_MAJOR
    if is_new or version < OLDEST or (9,) <= version < OLDEST_10:
        remedy = "update edge-awq" if is_new else "install one of them; a Jetson needs JetPack 6 or 7"
        raise EdgeAwqError(f"TensorRT {tensorrt} is not supported; {SUPPORTED} are", hint=remedy)
    if version[0] < 10 and not numpy.startswith("1."):
        raise EdgeAwqError(f"TensorRT {tensorrt} reads zeros for the weights of numpy {numpy}",
                           hint="pip install 'numpy<2'")
    return version


def _load_plugins(toolkit: Toolkit, library: Path) -> None:
    """Give TensorRT the plugins; its registry, one for the whole process, refuses a library that it has already."""
    plugins.load_library(library)  # says what is wrong with it better than the registry does
    if any(trt is toolkit.trt and known == library for trt, known in _LIBRARIES):
        return
    toolkit.log.forget()
    if toolkit.trt.get_plugin_registry().load_library(str(library)) is None:
        raise EdgeAwqError(f"{library}: {toolkit.title} does not take it as a plugin library"
                           f"{because(toolkit)}", hint="install the edge-awq wheel for this machine again")
    _LIBRARIES.append((toolkit.trt, library))


def create(toolkit: Toolkit, kind: str) -> Any:
    """TensorRT's "Builder" or "Runtime".

    Raises:
        EdgeAwqError: it does not start.
    """
    toolkit.log.forget()
    try:
        return getattr(toolkit.trt, kind)(toolkit.log)
    except TypeError as error:  # the binding's word for a null pointer
        raise EdgeAwqError(f"{toolkit.title} does not start{because(toolkit)}",
                           hint="its CUDA version must be one that the driver runs: see nvidia-smi") from error


def because(toolkit: Toolkit) -> str:
    """" (what TensorRT said)", or nothing."""
    return f" ({toolkit.why()})" if toolkit.why() else ""


def log_of(trt: ModuleType) -> Any:
    """The ILogger of that module for a Toolkit: one, which lives as long as the process.

    TensorRT keeps the address of the first that it meets, and writes there for whoever comes later.
    """
    for known, log in _LOGS:
        if known is trt:
            return log
    _LOGS.append((trt, _make_log(trt)))
    return _LOGS[-1][1]


def _make_log(trt: ModuleType) -> Any:
    severities = trt.ILogger.Severity

    class Log(trt.ILogger):
        """Keeps the first errors and the last warning of the work at hand; nothing is written to the terminal."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR) and len(self.errors) < MOST_ERRORS:
                self.errors.append(message)
            elif severity == severities.WARNING:
                self.warnings[:] = [message]

        def why(self) -> str:
            said = self.errors[:1] or self.warnings
            return " ".join(said[0].split()) if said else ""

        def forget(self) -> None:
            self.errors.clear()
            self.warnings.clear()

    return Log()
