"""pycuda and the driver's graph calls, both scripted: what is called, in which order, and every failure in words."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from fake_cuda import ORIN

from edge_awq.engine.trt import cuda as cuda_module
from edge_awq.engine.trt.cuda import DriverGraphs, PycudaCuda, open_cuda
from edge_awq.errors import EdgeAwqError


class FakeDriver:
    """libcuda's graph calls; ``failing``: name of a call -> what it returns."""

    def __init__(self, failing=()):
        self.calls, self.failing = [], dict(failing)

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name == "cuGetErrorName":
                names = {2: b"CUDA_ERROR_OUT_OF_MEMORY", 719: b"CUDA_ERROR_LAUNCH_FAILED"}
                arguments[1]._obj.value = names.get(arguments[0].value)
            if name == "cuStreamEndCapture":
                arguments[1]._obj.value = 11
            if name == "cuGraphInstantiateWithFlags":
                assert arguments[1].value == 11
                arguments[0]._obj.value = 22
            return self.failing.get(name, 0)

        return call


def test_capture_and_launch_in_the_drivers_order():
    driver = FakeDriver()
    graphs = DriverGraphs(driver)
    graph = graphs.capture(7, lambda: driver.calls.append("work"))
    graphs.launch(graph, 7)
    graphs.destroy(graph)
    assert graph == 22
    assert driver.calls == ["cuStreamBeginCapture_v2", "work", "cuStreamEndCapture", "cuGraphInstantiateWithFlags",
                            "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy"]


@pytest.mark.parametrize("name", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags",
                                  "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy"])
@pytest.mark.parametrize(("status", "said"), [(719, "CUDA_ERROR_LAUNCH_FAILED"), (2, "out of GPU memory"),
                                              (12345, "error 12345")])
def test_every_return_is_checked(name, status, said):
    graphs = DriverGraphs(FakeDriver({name: status}))
    with pytest.raises(EdgeAwqError) as caught:
        graphs.destroy(graphs.capture(7, lambda: None) if name != "cuGraphLaunch" else graphs.launch(22, 7))
    assert name in caught.value.message and said in caught.value.message and caught.value.hint


def test_capture_that_fails_leaves_the_stream_usable():
    driver = FakeDriver()
    with pytest.raises(KeyboardInterrupt):
        DriverGraphs(driver).capture(7, _interrupted)
    assert driver.calls == ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphDestroy"]


def _interrupted():
    raise KeyboardInterrupt


class Error(Exception):
    """pycuda.driver.Error, of which its others are made."""


class MemoryError_(Error):
    pass


class LaunchError(Error):
    pass


class Allocation:
    def __init__(self, address):
        self.address, self.is_free = address, False

    def __int__(self):
        return self.address

    def free(self):
        self.is_free = True


def fake_pycuda(log, failing=None):
    """pycuda.driver as far as it is used; ``failing``: name of a call -> exception."""
    failing = {} if failing is None else failing

    def act(name, result=None):
        def call(*arguments):
            log.append(name)
            if name in failing:
                raise failing[name]
            return result(*arguments) if callable(result) else result

        return call

    context = SimpleNamespace(push=act("push"), pop=act("pop"), detach=act("detach"))
    stream = SimpleNamespace(handle=77, synchronize=act("synchronize"))
    module = ModuleType("pycuda.driver")
    vars(module).update(
        Error=Error, MemoryError=MemoryError_, init=act("init"),
        Device=lambda index: SimpleNamespace(retain_primary_context=act("retain_primary_context", context)),
        Stream=act("Stream", stream), mem_get_info=act("mem_get_info", (1000, 2000)),
        mem_alloc=act("mem_alloc", lambda size: Allocation(4096)), memcpy_htod_async=act("memcpy_htod_async"),
        memcpy_dtoh_async=act("memcpy_dtoh_async"), pagelocked_zeros=act("pagelocked_zeros", np.zeros),
        memcpy_dtod_async=act("memcpy_dtod_async"), memset_d8_async=act("memset_d8_async"),
        event_flags=SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2),
        Event=act("Event", {3: SimpleNamespace(record=act("record"), synchronize=act("wait"))}.get))
    return module


def test_primary_context_memory_and_stream():
    log = []
    cuda = PycudaCuda(fake_pycuda(log), FakeDriver(), ORIN)
    assert cuda.stream == 77 and log == ["init", "retain_primary_context", "push", "pop", "push", "Stream", "pop"]
    address = cuda.alloc(100)
    assert address == 4096
    cuda.clear(address, 100)
    cuda.upload(address, np.zeros(3))
    cuda.download(cuda.host_array((3,), np.float32), address)
    cuda.copy(address, address + 50, 50)
    event = cuda.event()
    cuda.record(event)
    cuda.wait(event)
    cuda.synchronize()
    cuda.launch(cuda.capture(lambda: None))
    cuda.free(address)
    cuda.close()
    cuda.close()
    assert log[7:] == ["push", "mem_alloc", "pop", "memset_d8_async", "memcpy_htod_async", "push", "pagelocked_zeros",
                       "pop", "memcpy_dtoh_async", "memcpy_dtod_async", "push", "Event", "pop", "record", "wait",
                       "synchronize", "push", "pop", "push", "synchronize", "detach"]


def test_a_lost_gpu_is_left_without_freeing_memory(monkeypatch):
    """Each piece would be one more complaint of pycuda's on the terminal."""
    log, freed = [], []
    failing = {}
    cuda = PycudaCuda(fake_pycuda(log, failing), FakeDriver(), ORIN)
    cuda.alloc(100)
    monkeypatch.setattr(Allocation, "free", freed.append)
    failing["synchronize"] = LaunchError("lost")
    with pytest.raises(EdgeAwqError, match="the GPU failed: release of GPU memory: lost"):
        cuda.close()
    assert log[-2:] == ["synchronize", "detach"] and not freed
    cuda.close()


@pytest.mark.parametrize(("name", "act"), [
    ("mem_alloc", lambda cuda: cuda.alloc(5_000_000)), ("synchronize", lambda cuda: cuda.synchronize()),
    ("memset_d8_async", lambda cuda: cuda.clear(1, 8)), ("memcpy_htod_async", lambda cuda: cuda.upload(1, np.zeros(1))),
    ("memcpy_dtoh_async", lambda cuda: cuda.download(np.zeros(1), 1)),
    ("memcpy_dtod_async", lambda cuda: cuda.copy(1, 2, 4)), ("Event", lambda cuda: cuda.event()),
    ("record", lambda cuda: cuda.record(cuda.event())), ("wait", lambda cuda: cuda.wait(cuda.event())),
    ("mem_get_info", lambda cuda: cuda.free_bytes()), ("pagelocked_zeros", lambda cuda: cuda.host_array((1,), "f4")),
    ("detach", lambda cuda: cuda.close()),
])
def test_failures_of_pycuda(name, act):
    for error, said in ((MemoryError_("x"), "out of GPU memory"), (LaunchError("lost"), "the GPU failed")):
        cuda = PycudaCuda(fake_pycuda([], {name: error}), FakeDriver(), ORIN)
        with pytest.raises(EdgeAwqError, match=said) as caught:
            act(cuda)
        assert caught.value.hint


def test_shared_memory_counts_what_the_page_cache_can_give_back(monkeypatch):
    monkeypatch.setattr(cuda_module, "available_bytes", lambda: 5000)
    assert PycudaCuda(fake_pycuda([]), FakeDriver(), ORIN).free_bytes() == 5000


def refusal():
    with pytest.raises(EdgeAwqError) as caught:
        open_cuda()
    assert caught.value.hint
    return caught.value.message


def test_no_pycuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert "pycuda" in refusal()


def test_no_driver(monkeypatch):
    def absent(name):
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", absent)
    assert "NVIDIA's driver is not there: libcuda.so.1" in refusal()


def test_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake_pycuda([]))
    monkeypatch.setattr(cuda_module, "query_gpus", lambda: ())
    assert "finds no GPU" in refusal()


def test_gpu_is_opened(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake_pycuda([]))
    monkeypatch.setattr(cuda_module, "query_gpus", lambda: (ORIN,))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    assert open_cuda().gpu == ORIN
