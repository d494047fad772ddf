"""Passes of an engine over tokens: each has an execution context, the addresses it is bound to, and its CUDA graphs.

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
from edge_awq.engine.trt.cuda import Cuda, lost
from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.engine.trt.kernel_cache import KernelCache
    from edge_awq.engine.trt.weight_input import WeightInput

DECODE, PREFILL = "decode", "prefill"
IDS, PAST_LENGTH, NUM_LOGITS, LOGITS, TOKENS = "input_ids", "past_length", "num_logits", "logits", "tokens"
CACHE = ("past_key_", "past_value_")  # how names of the cache's inputs begin; outputs have present_ for past_
FRESH = "edge-awq compile --fresh makes the engine anew"


class LoadedPlan:
    """A deserialized engine."""

    def __init__(self, toolkit: Toolkit, plan: np.ndarray, kernels: KernelCache | None = None) -> None:
        """Load ``plan`` uint8; ``kernels``: those that its contexts compile.

        Raises:
            EdgeAwqError: it does not fit this machine or runtime.
        """
        self._kernels = kernels
        self._runtime = create(toolkit, "Runtime")
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise EdgeAwqError(f"{toolkit.title} cannot load the engine{because(toolkit)}",
                               hint="edge-awq compile --fresh makes it anew")

    def create_context(self) -> Any | None:
        """A new execution context; None: TensorRT has no memory for it."""
        config = self._kernels.make_config(self.engine) if self._kernels else None
        if config is None:
            return self.engine.create_execution_context()
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
        self._toolkit, self._graphs = toolkit, {}
        trt = toolkit.trt
        self._context = plan.create_context()
        if self._context is None:
            raise EdgeAwqError(f"{toolkit.name} cannot make room for the engine's activations{because(toolkit)}",
                               hint="close what else uses the GPU's memory")
        if table["profile"] and not self._context.set_optimization_profile_async(table["profile"], stream):
            self._context = None  # or the exception would hold it
            raise EdgeAwqError(f"the engine has no profile {table['profile']}{because(toolkit)}", hint=FRESH)
        self._engine = plan.engine
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = [name for name in names if is_input[name]]
        self.outputs = [name for name in names if not is_input[name]]
        self._num_logits = np.ones(1, np.int64)  # makes a shape, so TensorRT reads it from the host

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, -1 where it varies."""
        return tuple(self._engine.get_tensor_shape(name))

    def dtype(self, name: str) -> np.dtype:
        """Of a tensor."""
        return np.dtype(self._toolkit.trt.nptype(self._engine.get_tensor_dtype(name)))

    def bind(self, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        """Give a tensor its memory for good, and an input that varies its shape."""
        taken = self._context.set_tensor_address(name, address)
        if shape is not None:
            taken = taken and self._context.set_input_shape(name, shape)
        if not taken:
            raise EdgeAwqError(f"the engine does not take its tensor '{name}', shape {shape or self.shape(name)}"
                               f"{because(self._toolkit)}", hint=FRESH)

    def run(self, cuda: Cuda, rows: int, as_graph: bool) -> None:
        """Put a call of ``rows`` tokens on the stream; the first of that many runs as it is, then it is captured."""
        if rows in self._graphs:
            cuda.launch(self._graphs[rows])
            return
        if not self._context.set_input_shape(IDS, (1, rows)):
            raise EdgeAwqError(f"the engine does not take {rows} tokens{because(self._toolkit)}", hint=FRESH)
        if NUM_LOGITS in self.inputs:
            self._num_logits[0] = 1 if self.last_logits else rows
            self.bind(NUM_LOGITS, self._num_logits.ctypes.data)
        self._enqueue(cuda)
        if as_graph and self._can_be_captured(cuda.stream):
            cuda.synchronize()  # the call has set up what belongs to its shape, which a capture must not
            self._graphs[rows] = cuda.capture(lambda: self._enqueue(cuda))

    def _can_be_captured(self, stream: int) -> bool:
        """TensorRT-RTX says so, which compiles some kernels only while it runs."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or asked(stream)

    def _enqueue(self, cuda: Cuda) -> None:
        if not self._context.execute_async_v3(cuda.stream):
            raise lost("a pass of the engine", self._toolkit.why() or f"{self._toolkit.name} does not say why")

    def close(self, cuda: Cuda) -> None:
        """Release graphs and context, in this order."""
        try:
            for graph in self._graphs.values():
                cuda.destroy(graph)
        finally:
            self._graphs.clear()
            self._context = None
            self._engine = None
