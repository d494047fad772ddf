"""Run by test_pycuda.py in a process of its own: our CUDA layer on the real pycuda, and what the driver heard of it."""

import ctypes
import json
import sys

import numpy as np

from edge_awq.engine.trt.cuda import open_cuda
from edge_awq.errors import EdgeAwqError

driver = ctypes.CDLL("libcuda.so.1")
driver.fake_calls.restype = ctypes.c_char_p
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
worked = []
callback = CALLBACK(lambda _: worked.append("work"))

cuda = open_cuda()
address, sent, received = cuda.alloc(64), cuda.host_array((16,), np.float32), cuda.host_array((16,), np.float32)
sent[:] = range(16)
cuda.upload(address, sent)
cuda.download(received, address)
cuda.synchronize()
driver.fake_forget()
graph = cuda.capture(lambda: driver.cuLaunchHostFunc(ctypes.c_void_p(cuda.stream), callback, None))
before = len(worked)
cuda.launch(graph)
cuda.launch(graph)
cuda.synchronize()
cuda.destroy(graph)
calls = driver.fake_calls().decode().split()
driver.fake_fail(b"cuMemAlloc_v2", 2)
try:
    cuda.alloc(1 << 20)
    refused = None
except EdgeAwqError as error:
    refused = error.message
driver.fake_work()
cuda.free(address)
kept = driver.fake_allocations()
cuda.close()
missing = [name for name in sys.argv[1:] if not hasattr(sys.modules["pycuda.driver"], name)]
print(json.dumps({"received": received.tolist(), "calls": calls, "worked": [before, len(worked)], "refused": refused,
                  "allocations": kept, "missing": missing, "file": sys.modules["pycuda"].__file__}))
