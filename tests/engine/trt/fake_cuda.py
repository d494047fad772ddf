"""A GPU made of numpy arrays: what is put on its stream happens at ``synchronize``, as late as it may."""

from __future__ import annotations

import numpy as np

from edge_awq.engine.trt.cuda import lost, out_of_memory
from edge_awq.gpus import Gpu

ORIN = Gpu("Orin", (8, 7), 16, 64 << 30, True, None, 4 << 20, 1300.0)
ALIGNMENT = 256


class FakeCuda:
    """See edge_awq.engine.trt.cuda.Cuda. ``failure``: raised by the next synchronize, as a lost GPU does."""

    def __init__(self, gpu: Gpu = ORIN, memory_bytes: int = 1 << 30) -> None:
        self.gpu, self.stream, self.total = gpu, 7, memory_bytes
        self.memory: dict[int, np.ndarray] = {}
        self.queue: list = []
        self.graphs: dict[int, list] = {}
        self.launched, self.destroyed = [], []
        self.recorded, self.happened = [], []  # how often each event
        self.failure: str | None = None
        self.is_closed = False
        self._next, self._captured = ALIGNMENT, None

    def free_bytes(self):
        return self.total - sum(len(block) for block in self.memory.values())

    def alloc(self, nbytes):
        if nbytes > self.free_bytes():
            raise out_of_memory(f"{nbytes} bytes")
        address, size = self._next, max(nbytes, 1)
        self._next += -(-size // ALIGNMENT) * ALIGNMENT
        self.memory[address] = np.full(size, 0xFF, np.uint8)  # NaN as floats
        return address

    def free(self, address):
        del self.memory[address]

    def host_array(self, shape, dtype):
        return np.zeros(shape, dtype)

    def bytes_at(self, address, nbytes):
        """A view of device memory."""
        start = max(begin for begin in self.memory if begin <= address)
        block = self.memory[start][address - start : address - start + nbytes]
        assert len(block) == nbytes, "beyond the end of an allocation"
        return block

    def enqueue(self, work):
        """Put work on the stream, or into the graph that is captured."""
        (self.queue if self._captured is None else self._captured).append(work)

    @property
    def is_capturing(self):
        return self._captured is not None

    def upload(self, address, array):
        assert self._captured is None and array.flags.c_contiguous
        self.enqueue(lambda: self._fill(self.bytes_at(address, array.nbytes), array.reshape(-1).view(np.uint8)))

    def download(self, array, address):
        assert self._captured is None and array.flags.c_contiguous
        self.enqueue(lambda: self._fill(array.reshape(-1).view(np.uint8), self.bytes_at(address, array.nbytes)))

    def copy(self, address, source, nbytes):
        assert self._captured is None
        self.enqueue(lambda: self._fill(self.bytes_at(address, nbytes), self.bytes_at(source, nbytes)))

    def clear(self, address, nbytes):
        self.enqueue(lambda: self._fill(self.bytes_at(address, nbytes), 0))

    @staticmethod
    def _fill(target, source):
        target[:] = source

    def synchronize(self):
        assert self._captured is None, "no synchronizing while a graph is captured"
        if self.failure:
            raise lost("work on the GPU", self.failure)
        while self.queue:
            self.queue.pop(0)()

    def event(self):
        self.recorded.append(0)
        self.happened.append(0)
        return len(self.recorded) - 1

    def record(self, event):
        self.recorded[event] += 1
        number = self.recorded[event]
        self.enqueue(lambda: self.happened.__setitem__(event, number))

    def wait(self, event):
        if self.failure:
            raise lost("work on the GPU", self.failure)
        while self.happened[event] < self.recorded[event]:
            self.queue.pop(0)()

    def capture(self, work):
        assert not self.queue, "a capture begins on an idle stream"
        self._captured = []
        try:
            work()
            graph = len(self.graphs) + 1
            self.graphs[graph] = self._captured
        finally:
            self._captured = None
        return graph

    def launch(self, graph):
        assert graph not in self.destroyed
        self.launched.append(graph)
        self.queue += self.graphs[graph]

    def destroy(self, graph):
        self.graphs[graph] = []
        if self.failure:
            raise lost("cuGraphExecDestroy", self.failure)
        self.destroyed.append(graph)

    def close(self):
        if self.failure:
            raise lost("release of GPU memory", self.failure)
        self.memory.clear()
        self.queue.clear()
        self.is_closed = True
