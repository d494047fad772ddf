"""TensorRT-RTX's classes that keep kernels, for fake_tensorrt.py: a kernel is a profile and a number of tokens."""

from __future__ import annotations

import json

ERROR = 1  # ILogger.Severity's


class IRuntimeConfig:
    def __init__(self, engine):
        self.engine, self.cache, self.strategy = engine, None, None
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return None if "no_cache" in self.engine.script else IRuntimeCache(self.engine)

    def set_runtime_cache(self, cache):
        if "cache_not_taken" in self.engine.script:
            return False
        self.cache = cache
        return True


class IRuntimeCache:
    def __init__(self, engine):
        self.engine, self.kernels = engine, []

    def serialize(self):
        """Kernels, and the driver that they were compiled with."""
        if "cache_not_serialized" in self.engine.script:
            return None
        return memoryview(json.dumps([self.engine.script.get("driver"), self.kernels]).encode())

    def deserialize(self, blob):
        driver, kernels = json.loads(blob)
        if driver != self.engine.script.get("driver"):
            self.engine.log.log(ERROR, "another driver")
            return False
        self.kernels = kernels
        return True
