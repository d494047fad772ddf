"""Passes of an engine over tokens: each has execution contexts, the addresses they are bound to, and its CUDA graphs.

TensorRT allows nobody to change a context from which a graph was captured, be it the shape of an input. So each number
of tokens that has a graph has a context of its own. All contexts share memory for activations, as one runs at a time.

What the runtime must know about a pass stands beside the engine, a table with the keys of ``Pass``'s attributes and

    plan     which of the stored plans it runs; passes may share one
    profile  number of the optimization profile there
    weights  [name, dtype, shape, parts] of each input that never changes, as of a WeightInput
    declined, why rules of the lowering left nodes as they were
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_awq.engine.trt.bindings import Toolkit, because, create
from edge_awq.engine.trt.build_progress import uninterrupted
from edge_awq.engine.trt.cuda import Cuda, lost
from edge_awq.engine.trt.names import IDS
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.engine.trt.kernel_cache import KernelCache
    from edge_awq.engine.trt.weight_input import WeightInput

DECODE, PREFILL = "decode", "prefill"
NUM_LOGITS = "num_logits"
CACHE = ("past_key_", "past_value_")  # how names of the cache's inputs begin; outputs have present_ for past_
# TensorRT's own nptype asks numpy for what numpy 1.24 has no longer, in older versions.
DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64}
FRESH = "edge-awq compile --fresh makes the engine anew"


class LoadedPlan:
    """A deserialized engine.

    Attributes:
        activations: address and bytes of device memory for its execution contexts, at least ``activation_bytes``.
    """

    def __init__(self, toolkit: Toolkit, plan: np.ndarray, kernels: KernelCache | None = None) -> None:
        """Load ``plan`` uint8; ``kernels``: those that its contexts compile.

        Raises:
            EdgeAwqError: it does not fit this machine or runtime.
        """
        self._trt, self._kernels = toolkit.trt, kernels
        self.activations = (0, 0)
        self._runtime = create(toolkit, "Runtime")
        self.engine = uninterrupted(lambda: self._runtime.deserialize_cuda_engine(plan))
        if self.engine is None:
            raise EdgeAwqError(f"{toolkit.title} cannot load the engine{because(toolkit)}",
                               hint="edge-awq compile --fresh makes it anew")

    @property
    def activation_bytes(self) -> int:
        """What a context needs, whatever its profile."""
        is_new = hasattr(self.engine, "device_memory_size_v2")
        return self.engine.device_memory_size_v2 if is_new else self.engine.device_memory_size

    def create_context(self, for_graph: bool = False) -> Any | None:
        """A new execution context, which runs as it is or to be captured; None: TensorRT does not make it."""
        context = uninterrupted(lambda: self._bare_context(for_graph))
        if context is None:
            return None
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(*self.activations)
        else:  # 8.6
            context.device_memory = self.activations[0]
        return context

    def _bare_context(self, for_graph: bool) -> Any | None:
        """Without memory."""
        if not hasattr(self._trt, "ExecutionContextAllocationStrategy"):  # 8.6
            return self.engine.create_execution_context_without_device_memory()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config = self._kernels.make_config(self.engine) if self._kernels else None
        if config is None:
            return self.engine.create_execution_context(strategy=strategy)
        config.set_execution_context_allocation_strategy(strategy)
        if for_graph:  # which would keep kernels for any shape, while those for this one are compiled beside it
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER)
        return self.engine.create_execution_context(runtime_config=config)

    def close(self) -> None:
        """Release engine and runtime, in this order."""
        if self._kernels:
            self._kernels.close()
        self.engine = None
        self._runtime = None


class Pass:
    """One way to run an engine.

    Attributes:
        most_rows: tokens of one call at most.
        last_logits: logits of the newest token alone come out; otherwise those of all tokens of a call.
        weights: its inputs that never change.
    """

    def __init__(self, toolkit: Toolkit, plan: LoadedPlan, table: Mapping[str, Any], stream: int) -> None:
        from edge_awq.engine.trt.weight_input import WeightInput

        self.most_rows: int = table["most_rows"]
        self.last_logits: bool = table["last_logits"]
        self.weights: tuple[WeightInput, ...] = tuple(
            WeightInput(name, dtype, tuple(shape), tuple(parts)) for name, dtype, shape, parts in table["weights"])
        self._toolkit, self._plan, self._profile = toolkit, plan, (table["profile"], stream)
        self._graphs: dict[int, int] = {}  # by number of tokens
        self._own: dict[int, Any] = {}  # contexts for a number of tokens
        self._bound: dict[str, tuple[int, tuple[int, ...] | None]] = {}
        self._num_logits = np.ones(self.most_rows + 1, np.int64)  # make a shape, so TensorRT reads them from the host
        self._plain = plan.create_context()  # for any number
        if self._plain is None:
            raise EdgeAwqError(f"{toolkit.name} cannot make room for the engine's activations{because(toolkit)}",
                               hint="close what else uses the GPU's memory")
        if not self._set_up(self._plain):
            self._plain = None  # or the exception would hold it
            raise EdgeAwqError(f"the engine has no profile {table['profile']}{because(toolkit)}", hint=FRESH)
        engine, modes = plan.engine, toolkit.trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == modes.INPUT for name in names}
        self.inputs = [name for name in names if is_input[name]]
        self.outputs = [name for name in names if not is_input[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, -1 where it varies."""
        return tuple(self._plan.engine.get_tensor_shape(name))

    def dtype(self, name: str) -> np.dtype:
        """Of a tensor."""
        return np.dtype(DTYPES[self._plan.engine.get_tensor_dtype(name).name])

    def bind(self, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        """Give a tensor its memory for good, and an input that varies its shape."""
        self._bound[name] = address, shape
        if not _bind(self._plain, name, address, shape):
            raise EdgeAwqError(f"the engine does not take its tensor '{name}', shape {shape or self.shape(name)}"
                               f"{because(self._toolkit)}", hint=FRESH)

    def prepare(self, rows: int) -> None:
        """Make what calls of ``rows`` tokens as a graph need before the first of them; all tensors are bound."""
        if rows in self._own:
            return
        context = self._plan.create_context(for_graph=True)
        if context is None or not self._set_up(context):  # such calls will have no graph
            context = self._plain
            self._toolkit.log.forget()
        self._own[rows] = context

    def run(self, cuda: Cuda, rows: int, as_graph: bool) -> None:
        """Put a call of ``rows`` tokens on the stream; the first of that many runs as it is, then it is captured."""
        if rows in self._graphs:
            cuda.launch(self._graphs[rows])
            return
        if as_graph:
            self.prepare(rows)
        context = self._own[rows] if as_graph else self._plain
        if not context.set_input_shape(IDS, (1, rows)):
            raise EdgeAwqError(f"the engine does not take {rows} tokens{because(self._toolkit)}", hint=FRESH)
        if NUM_LOGITS in self.inputs:
            number = self._num_logits[0 if context is self._plain else rows :]
            number[0] = 1 if self.last_logits else rows
            _bind(context, NUM_LOGITS, number.ctypes.data)
        self._enqueue(cuda, context)
        if context is not self._plain and _can_be_captured(context, cuda.stream):
            cuda.synchronize()  # the call has set up what belongs to its shape, which a capture must not
            try:
                self._graphs[rows] = cuda.capture(lambda: self._enqueue(cuda, context))
            except EdgeAwqError:  # the call itself has run, and so will those to come
                self._own[rows] = self._plain
                self._toolkit.log.forget()

    def close(self, cuda: Cuda) -> None:
        """Release graphs and contexts, in this order."""
        try:
            for graph in self._graphs.values():
                cuda.destroy(graph)
        finally:
            self._graphs.clear()
            self._own.clear()
            self._plain = None

    def _set_up(self, context: Any) -> bool:
        """Whether it takes what this pass is; in 8.6 only the first context of an engine begins with profile 0."""
        return context.set_optimization_profile_async(*self._profile) and all(
            _bind(context, name, *bound) for name, bound in self._bound.items())

    def _enqueue(self, cuda: Cuda, context: Any) -> None:
        if not context.execute_async_v3(cuda.stream):
            raise lost("a pass of the engine", self._toolkit.why() or f"{self._toolkit.name} does not say why")


def _bind(context: Any, name: str, address: int, shape: tuple[int, ...] | None = None) -> bool:
    """Whether the context takes a tensor's memory and, of an input that varies, its shape."""
    return context.set_tensor_address(name, address) and (shape is None or context.set_input_shape(name, shape))


def _can_be_captured(context: Any, stream: int) -> bool:
    """TensorRT-RTX says so, which compiles some kernels only while it runs."""
    asked = getattr(context, "is_stream_capturable", None)
    return asked is None or asked(stream)
