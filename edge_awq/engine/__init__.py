"""ENGINE: a bundle's graph is lowered and compiled for one runtime, and runs behind one protocol."""

from __future__ import annotations

import importlib
from types import ModuleType

from edge_awq.errors import EdgeAwqError

# Kinds whose engines are compiled on the device, by a later version: bundles for them hold no engine.
ON_DEVICE = ("tensorrt",)
NOT_YET = "this edge-awq cannot compile or run {kind} engines yet; it quantizes, exports and forecasts for them"

# Kind of runtime, as a target's profile names it -> package that offers ``compile_bundle`` and ``open_engine``.
RUNTIMES = {"onnxruntime": "edge_awq.engine.ort"}
CPU_RUNTIMES = {"onnxruntime"}  # the others' work is a GPU's


def load_runtime(kind: str) -> ModuleType:
    """The package that compiles and runs graphs for runtimes of ``kind``.

    Raises:
        EdgeAwqError: there is none for that kind.
    """
    if kind in ON_DEVICE:
        raise EdgeAwqError(NOT_YET.format(kind=kind), hint="to run on this machine, build with --target cpu")
    if kind not in RUNTIMES:
        raise EdgeAwqError(f"runtime '{kind}' is not known", hint=f"known: {', '.join((*RUNTIMES, *ON_DEVICE))}")
    return importlib.import_module(RUNTIMES[kind])
