"""What is given back, in which order, however an engine ends: on a scripted TensorRT and GPU."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress

import fake_engine
import pytest
from fake_tensorrt import VOCAB
from toy_bundle import CHUNK, install, make_bundle

from edge_awq.engine.trt import compile_bundle, open_engine
from edge_awq.errors import EdgeAwqError

IDS = [place % VOCAB for place in range(CHUNK)]


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


@pytest.fixture
def released(monkeypatch):
    """A GPU; and at each time that it is closed what is still there of TensorRT, and whether its work was done."""
    script, found = {}, []
    cuda = install(monkeypatch, script=script)
    close = cuda.close

    def look():
        gc.collect()
        found.append((len(script.get("alive", ())), len(cuda.queue)))
        close()

    monkeypatch.setattr(cuda, "close", look)
    return cuda, script, found


def test_engines_are_released_before_the_gpu(bundle, released):
    cuda, script, found = released
    engine = open_engine(bundle)
    engine.step(3)
    assert len(script["alive"]) == 5  # two engines with a context each, and one of its own for graphs of a token
    engine.close()
    engine.close()
    assert found == [(0, 0)] and cuda.is_closed


def test_what_ctrl_c_has_left_on_the_stream_is_waited_for(bundle, released, monkeypatch):
    cuda, _, found = released
    engine = open_engine(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "download", _press)
        with pytest.raises(KeyboardInterrupt):
            engine.prefill(IDS)
    assert cuda.queue
    engine.close()
    assert found == [(0, 0)]


def _press(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["deserialize_cuda_engine", "new_context"])
def test_ctrl_c_while_tensorrt_logs_is_not_lost(bundle, released, monkeypatch, call):
    """Its binding swallows what is raised in a log's method."""
    cuda, _, found = released
    compile_bundle(bundle.path)
    found.clear()
    monkeypatch.setattr(cuda, "is_closed", False)
    owner = fake_engine.ICudaEngine if call == "new_context" else sys.modules["tensorrt"].Runtime
    original = getattr(owner, call)

    def log_and_go_on(*arguments):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(owner, call, log_and_go_on)
    with pytest.raises(KeyboardInterrupt):
        open_engine(bundle)
    assert found[0] == (0, 0) and cuda.is_closed


@pytest.mark.parametrize("failure", ["context", "upload", "bind"])
def test_engines_that_are_half_loaded_are_released_before_the_gpu(bundle, released, monkeypatch, failure):
    cuda, _script, found = released
    compile_bundle(bundle.path)
    found.clear()
    monkeypatch.setattr(cuda, "is_closed", False)
    if failure == "context":
        create, made = fake_engine.ICudaEngine.new_context, []
        monkeypatch.setattr(fake_engine.ICudaEngine, "new_context",
                            lambda self, *kind: None if made else made.append(1) or create(self, *kind))
    elif failure == "upload":
        monkeypatch.setattr(cuda, "upload", _press)
    else:
        monkeypatch.setattr(fake_engine.IExecutionContext, "set_tensor_address", lambda *_: False)
    with pytest.raises((EdgeAwqError, KeyboardInterrupt)):
        open_engine(bundle)
    assert found[0] == (0, 0) and cuda.is_closed


def test_a_lost_gpu_keeps_nothing_of_tensorrt(bundle, released):
    cuda, _script, found = released
    engine = open_engine(bundle)
    engine.step(3)
    cuda.failure = "unspecified launch failure"
    engine.close()
    assert len(found) == 1 and found[0][0] == 0


def test_an_engine_that_nobody_closes_is_released(bundle, released):
    cuda, _, found = released
    engine = open_engine(bundle)
    assert engine._finalizer.atexit
    del engine
    gc.collect()
    assert found == [(0, 0)] and cuda.is_closed
