"""ENGINE: a bundle's graph is lowered and compiled for one runtime, and runs behind one protocol."""

from __future__ import annotations

import importlib
from types import ModuleType

from edge_awq.errors import EdgeAwqError

# Kind of runtime, as a target's profile names it -> package that offers ``compile_bundle`` and ``open_engine``.
RUNTIMES = {"onnxruntime": "edge_awq.engine.ort", "tensorrt": "edge_awq.engine.trt"}
# The same for bundles that are to run without edge-awq's plugins.
PLUGIN_FREE = {"tensorrt": "edge_awq.engine.standard"}
CPU_RUNTIMES = {"onnxruntime"}  # the others' work is a GPU's
# Kinds whose engines hold for one device: a build leaves a bundle without one, and the device compiles it.
ON_DEVICE = {"tensorrt"}
LATER = "its {kind} engine is compiled on the device: by edge-awq compile, or by the first edge-awq run"


def load_runtime(kind: str, plugin_free: bool = False) -> ModuleType:
    """The package that compiles and runs graphs for runtimes of ``kind``; ``plugin_free``: by standard ops alone.

    Raises:
        EdgeAwqError: there is none for that kind.
    """
    if plugin_free and kind not in PLUGIN_FREE:
        raise EdgeAwqError(f"runtime '{kind}' has no engines without plugins; {', '.join(PLUGIN_FREE)} has",
                           hint="leave --plugin-free out, or build for a GPU: edge-awq build --target")
    if kind not in RUNTIMES:
        raise EdgeAwqError(f"runtime '{kind}' is not known", hint=f"known: {', '.join(RUNTIMES)}")
    return importlib.import_module((PLUGIN_FREE if plugin_free else RUNTIMES)[kind])
