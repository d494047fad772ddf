"""What the runtime needs of CUDA, and how it gets that: pycuda for memory and a stream, libcuda itself for graphs.

pycuda has no CUDA graphs, so their six calls go to the driver by ctypes. Not yet verified on device.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from edge_awq.errors import EdgeAwqError
from edge_awq.gpus import Gpu, query_gpus
from edge_awq.lazy import require
from edge_awq.memory import available_bytes

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, cuda.h
LOST = "run again; if it comes back, 'sudo dmesg | grep -i -e nvrm -e xid' says what the GPU reported"


class Cuda(Protocol):
    """One GPU, its primary context and one stream, on which everything happens in order.

    Any thread may call, one at a time. Addresses are integers; arrays are C-contiguous. Every method raises
    EdgeAwqError where the driver refuses.

    Attributes:
        gpu: what the driver says about it.
        stream: handle of the stream.
    """

    gpu: Gpu
    stream: int

    def free_bytes(self) -> int:
        """Device memory that can be had now."""
        ...

    def alloc(self, nbytes: int) -> int:
        """Device memory of at least one byte, aligned to 256."""
        ...

    def free(self, address: int) -> None:
        """Give it back."""
        ...

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Page-locked zeros, from and to which copies are fast and asynchronous."""
        ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy an array to the device; it must stay as it is until ``synchronize``."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Fill an array from the device; it is filled after ``synchronize``."""
        ...

    def copy(self, address: int, source: int, nbytes: int) -> None:
        """Copy to an address from another one on the device."""
        ...

    def clear(self, address: int, nbytes: int) -> None:
        """Set device memory to zeros."""
        ...

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        ...

    def event(self) -> int:
        """Number of a new event, which lasts until ``close``."""
        ...

    def record(self, event: int) -> None:
        """Put an event on the stream."""
        ...

    def wait(self, event: int) -> None:
        """Wait until all is done that was on the stream when the event was recorded last.

        The thread sleeps meanwhile. It wakes a little later than one that spins, but spinning takes power.
        """
        ...

    def capture(self, work: Callable[[], None]) -> int:
        """What ``work`` puts on the stream becomes a graph, ready to launch; nothing of it runs now."""
        ...

    def launch(self, graph: int) -> None:
        """Put a graph on the stream."""
        ...

    def destroy(self, graph: int) -> None:
        """Forget a graph."""
        ...

    def close(self) -> None:
        """Free all memory and leave the context; a second time nothing happens."""
        ...


def open_cuda() -> Cuda:
    """The first GPU.

    Raises:
        EdgeAwqError: pycuda is missing, or there is no driver or no GPU.
    """
    try:
        driver = require("pycuda.driver", "trt")
    except EdgeAwqError as error:
        raise EdgeAwqError(f"{error.message}; bundles for GPUs need it",
                           hint=f"{error.hint}, with the CUDA toolkit at hand; where there is no GPU of NVIDIA's, "
                           "build with --target cpu") from error
    except ImportError as error:
        raise EdgeAwqError(f"NVIDIA's driver is not there: {error}",
                           hint="install it; in a container, start that with --runtime nvidia or --gpus all") from error
    gpus = query_gpus()
    if not gpus:
        raise EdgeAwqError("NVIDIA's driver finds no GPU, or does not start",
                           hint="see what nvidia-smi says; in a container, start that with --gpus all")
    return PycudaCuda(driver, ctypes.CDLL("libcuda.so.1"), gpus[0])


class PycudaCuda:
    """See Cuda. ``driver`` is pycuda.driver, ``library`` libcuda."""

    def __init__(self, driver: ModuleType, library: Any, gpu: Gpu) -> None:
        self.gpu = gpu
        self._driver, self._library = driver, library
        self._graphs = DriverGraphs(library)
        with self._checked("start of CUDA"):
            driver.init()
            self._held = _Held(driver.Device(0).retain_primary_context(), library)  # TensorRT's own
            self._finalizer = weakref.finalize(self, _release, self._held, driver.Error)  # at exit, too
            with self._held.pushed():
                self._held.stream = driver.Stream()
        self._enter_thread()
        self.stream = int(self._held.stream.handle)

    def free_bytes(self) -> int:
        self._enter_thread()
        with self._checked("memory query"):
            free = int(self._driver.mem_get_info()[0])
        return max(free, available_bytes() or 0) if self.gpu.integrated else free

    def alloc(self, nbytes: int) -> int:
        with self._checked(f"{nbytes / 1e6:.1f} MB of GPU memory"), self._held.pushed():
            memory = self._driver.mem_alloc(max(nbytes, 1))
        self._held.memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        with self._checked("release of GPU memory"), self._held.pushed():
            self._held.memory.pop(address).free()

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        with self._checked("page-locked memory"), self._held.pushed():
            return self._driver.pagelocked_zeros(shape, dtype)

    def upload(self, address: int, array: np.ndarray) -> None:
        self._enter_thread()
        with self._checked("copy to the GPU"):
            self._driver.memcpy_htod_async(address, array, self._held.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        self._enter_thread()
        with self._checked("copy from the GPU"):
            self._driver.memcpy_dtoh_async(array, address, self._held.stream)

    def copy(self, address: int, source: int, nbytes: int) -> None:
        self._enter_thread()
        with self._checked("copy on the GPU"):
            self._driver.memcpy_dtod_async(address, source, nbytes, self._held.stream)

    def clear(self, address: int, nbytes: int) -> None:
        self._enter_thread()
        with self._checked("clearing of GPU memory"):
            self._driver.memset_d8_async(address, 0, nbytes, self._held.stream)

    def synchronize(self) -> None:
        self._enter_thread()
        with self._checked("work on the GPU"):
            self._held.stream.synchronize()

    def event(self) -> int:
        with self._checked("event"), self._held.pushed():
            flags = self._driver.event_flags
            self._held.events.append(self._driver.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING))
        return len(self._held.events) - 1

    def record(self, event: int) -> None:
        self._enter_thread()
        with self._checked("record of an event"):
            self._held.events[event].record(self._held.stream)

    def wait(self, event: int) -> None:
        self._enter_thread()
        with self._checked("work on the GPU"):
            self._held.events[event].synchronize()

    def capture(self, work: Callable[[], None]) -> int:
        self._enter_thread()
        return self._graphs.capture(self.stream, work)

    def launch(self, graph: int) -> None:
        self._enter_thread()
        self._graphs.launch(graph, self.stream)

    def destroy(self, graph: int) -> None:
        self._enter_thread()
        self._graphs.destroy(graph)

    def close(self) -> None:
        if self._finalizer.detach() is None:
            return
        with self._checked("release of GPU memory"):
            self._held.release()
        self._library.cuCtxSetCurrent(None)

    def _enter_thread(self) -> None:
        """Make the context current in the calling thread, which another session may have left."""
        self._library.cuCtxSetCurrent(self._held.handle)

    @contextmanager
    def _checked(self, what: str) -> Iterator[None]:
        """pycuda's exceptions become ours."""
        try:
            yield
        except self._driver.MemoryError as error:
            raise out_of_memory(what) from error
        except self._driver.Error as error:
            raise lost(what, str(error)) from error


class _Held:
    """What is to be given back: memory by its address, events, the stream, the context."""

    def __init__(self, context: Any, library: Any) -> None:
        self.stream: Any = None
        self.memory: dict[int, Any] = {}
        self.events: list[Any] = []
        self.handle = ctypes.c_void_p()
        self._context, self._library = context, library
        with self.pushed():
            library.cuCtxGetCurrent(ctypes.byref(self.handle))

    @contextmanager
    def pushed(self) -> Iterator[None]:
        """Let pycuda know the context for as long as it makes or frees something.

        A thread that ends with a context on pycuda's stack takes the process with it.
        """
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def release(self) -> None:
        """Give everything back, once."""
        self._context.push()
        try:
            if self.stream is not None:
                self.stream.synchronize()  # a GPU that is lost would complain of every piece of memory
            for memory in self.memory.values():
                memory.free()
            self.events.clear()  # they go before their context does, as the stream
            self.stream = None
        finally:
            # While it is the current one, or pycuda would push it again; left to pycuda's destructor, the wrong
            # function would be called on a primary one.
            self._context.detach()
            self.memory.clear()
            self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))  # pycuda has forgotten it, CUDA has not


def _release(held: _Held, error: type[Exception]) -> None:
    """What is left of a GPU that nobody closed."""
    with suppress(error):
        held.release()


class DriverGraphs:
    """The driver's calls for CUDA graphs, each one checked."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """An executable graph of what ``work`` puts on ``stream``."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL))
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            work()
        except BaseException:  # a stream left capturing could not be used again
            self._library.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
            if graph.value:
                self._library.cuGraphDestroy(graph)
            raise
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return int(executable.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Put ``graph`` on ``stream``."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy(self, graph: int) -> None:
        """Forget ``graph``."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
        reason = text.value.decode() if text.value else f"error {status}"
        raise out_of_memory(name) if reason == "CUDA_ERROR_OUT_OF_MEMORY" else lost(name, reason)


def out_of_memory(what: str) -> EdgeAwqError:
    """The error of an allocation that did not fit."""
    return EdgeAwqError(f"out of GPU memory: {what}", hint="close what else uses the GPU, or give a smaller --context")


def lost(what: str, reason: str) -> EdgeAwqError:
    """The error of a GPU that stopped working."""
    return EdgeAwqError(f"the GPU failed: {what}: {reason}", hint=LOST)
