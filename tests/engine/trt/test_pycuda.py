"""The real pycuda under our CUDA layer, on the driver made for tests: names, copies, capture, failures, a whole model.

It is built from its source where $EDGE_AWQ_REGISTRIES names a folder for that; see pycuda_build.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lowered import TESTS, built_library
from pycuda_build import built_pycuda, full_driver

import edge_awq
from edge_awq.engine.trt import cuda
from edge_awq.plugins import OVERRIDE

HERE = Path(__file__).resolve().parent
TOP = Path(edge_awq.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """That of a machine with the real pycuda; TensorRT and the driver are ours."""
    site = built_pycuda()
    where = tmp_path_factory.mktemp("driver")
    full_driver(site, where)
    paths = [str(each) for each in (site, TOP, HERE / "machine")]
    return os.environ | {"LD_LIBRARY_PATH": str(where), "PYTHONPATH": os.pathsep.join(paths),
                         OVERRIDE: str(built_library()), "EDGE_AWQ_FAKE_TENSORRT": "8.6.0"}


@pytest.fixture(scope="module")
def found(environment):
    """What pycuda_capture.py prints; it must end without a word of complaint."""
    touched = sorted(set(re.findall(r"driver\.([A-Za-z_]\w*)", Path(cuda.__file__).read_text(encoding="utf-8"))))
    assert {"Device", "Stream", "mem_alloc", "MemoryError"} <= set(touched)
    done = subprocess.run([sys.executable, HERE / "pycuda_capture.py", *touched, "no_such_name"], check=False,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, f"{done.returncode} {done.stderr}"
    return json.loads(done.stdout)


def test_every_name_is_there(found):
    assert found["missing"] == ["no_such_name"]
    assert "machine" not in found["file"]  # where the stand-in for it lies


def test_copies_and_memory(found):
    """One piece of memory is left for ``close`` to free."""
    assert found["received"][0] == [*range(8), *range(4), *range(12, 16)] and found["allocations"] == [1, 0]
    assert found["refused"].startswith("out of GPU memory: 1.0 MB")


def test_capture_order_on_its_stream(found):
    """Captured work does not run, then runs once for each launch, and nothing waits inside a capture."""
    assert found["calls"] == ["cuStreamBeginCapture", "cuLaunchHostFunc", "cuStreamEndCapture", "cuGraphInstantiate",
                              "cuGraphDestroy", "cuGraphLaunch", "cuGraphLaunch", "cuStreamSynchronize",
                              "cuGraphExecDestroy"]
    assert found["worked"][:2] == [0, 2]


def test_any_thread_may_call(found):
    """The context is current only where it was made so; pycuda ends the process with a thread that leaves it there."""
    assert found["received"][1] == [7] * 16 and found["worked"][2] == 3


def test_a_session_outlives_another_of_the_same_thread(environment):
    code = ("from edge_awq.engine.trt.cuda import open_cuda; import ctypes, numpy\n"
            "ctypes.CDLL('libcuda.so.1').fake_set(b'needs_context', 1)\n"
            "first, second = open_cuda(), open_cuda()\n"
            "address, found = second.alloc(16), second.host_array((4,), numpy.float32)\n"
            "events = [each.event() for each in (first, second)]; first.record(events[0])\n"
            "second.clear(address, 16); first.close(); found[:] = 1; second.download(found, address)\n"
            "second.record(events[1]); second.wait(events[1])\n"
            "second.synchronize(); second.destroy(second.capture(lambda: None)); assert not found.any()\n"
            "second.close()")
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_forgets_to_close_ends_well(environment):
    """pycuda aborts it where a context is left on its stack."""
    code = ("from edge_awq.engine.trt.cuda import open_cuda; import numpy\n"
            "cuda = open_cuda(); cuda.alloc(64); array = cuda.host_array((4,), numpy.float32)")
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_runs(environment):
    """The trt lane's steps over the real pycuda."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "trt" / "test_engines.py", "-k",
               "mpt-fp16 and (every_step or replays)"]
    done = subprocess.run(command, env=environment | {"EDGE_AWQ_REQUIRE": "gpu,trt"}, capture_output=True, text=True,
                          check=False, cwd=TOP)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "PyCUDA WARNING" not in done.stderr
