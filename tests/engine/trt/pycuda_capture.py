"""Run by test_pycuda.py in a process of its own: our CUDA layer on the real pycuda, and what the driver heard of it."""

import ctypes
import json
import sys
from threading import Thread

import numpy as np

from edge_awq.engine.trt.cuda import open_cuda
from edge_awq.errors import EdgeAwqError

driver = ctypes.CDLL("libcuda.so.1")
driver.fake_calls.restype = ctypes.c_char_p
driver.fake_set(b"needs_context", 1)
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
worked = []
callback = CALLBACK(lambda _: worked.append("work"))

cuda = open_cuda()
address, sent, received = cuda.alloc(64), cuda.host_array((16,), np.float32), cuda.host_array((16,), np.float32)
sent[:] = range(16)
cuda.upload(address, sent)
cuda.copy(address + 32, address, 16)
cuda.copy(address, address + 32, 16)
cuda.download(received, address)
event = cuda.event()
cuda.record(event)
cuda.wait(event)
driver.fake_forget()
graph = cuda.capture(lambda: driver.cuLaunchHostFunc(ctypes.c_void_p(cuda.stream), callback, None))
before = len(worked)
cuda.launch(graph)
cuda.launch(graph)
cuda.synchronize()
cuda.destroy(graph)
calls, counted = driver.fake_calls().decode().split(), [before, len(worked)]


def elsewhere():
    """What a thread does that did not open the GPU, and ends before it is closed."""
    kept.append(cuda.alloc(64))
    sent[:] = 7
    cuda.upload(kept[0], sent)
    cuda.download(received_elsewhere, kept[0])
    cuda.launch(graph_again)
    cuda.synchronize()


kept, received_elsewhere = [], cuda.host_array((16,), np.float32)
graph_again = cuda.capture(lambda: driver.cuLaunchHostFunc(ctypes.c_void_p(cuda.stream), callback, None))
thread = Thread(target=elsewhere)
thread.start()
thread.join()
cuda.destroy(graph_again)
driver.fake_fail(b"cuMemAlloc_v2", 2)
try:
    cuda.alloc(1 << 20)
    refused = None
except EdgeAwqError as error:
    refused = error.message
driver.fake_work()
cuda.free(address)
allocations = [driver.fake_allocations()]
sent, received, received_elsewhere = received.tolist(), received_elsewhere.tolist(), None
cuda.close()
cuda.close()
allocations.append(driver.fake_allocations())
missing = [name for name in sys.argv[1:] if not hasattr(sys.modules["pycuda.driver"], name)]
print(json.dumps({"received": [sent, received], "calls": calls, "worked": [*counted, len(worked)], "refused": refused,
                  "allocations": allocations, "missing": missing, "file": sys.modules["pycuda"].__file__}))
