"""The runtimes that know every op of the plugin-free lowering, and which of them this machine has.

TensorRT-RTX builds without a GPU, for all that it knows; TensorRT from 10.15 on needs the GPU that will run the engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_awq.engine.trt.bindings import Toolkit, log_of
from edge_awq.errors import EdgeAwqError
from edge_awq.gpus import Gpu
from edge_awq.lazy import require

OTHER_ENGINES = "use the engines with edge-awq's plugins: leave --plugin-free out"


@dataclass(frozen=True)
class Runtime:
    """A runtime and its conditions.

    Attributes:
        module, extra: its Python module, and the extra of edge-awq that brings it.
        first: version that knows every op; ``last_major`` is the newest major version that is used.
        capabilities: compute capabilities that its engines run on; None: that of the GPU that built them.
    """

    name: str
    module: str
    extra: str
    first: tuple[int, int]
    last_major: int
    capabilities: tuple[tuple[int, int], ...] | None


# In the order in which they are looked for. TensorRT-RTX 1.7 has no 8.7 (Orin) and no 9.0; 7.5 must be asked for.
RUNTIMES = (
    Runtime("TensorRT-RTX", "tensorrt_rtx_bindings", "rtx", (1, 7), 1, ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))),
    Runtime("TensorRT", "tensorrt", "trt", (10, 15), 11, None),
)


def find_runtime(gpu: Gpu | None) -> tuple[Runtime, Toolkit]:
    """The first runtime that is installed and has engines for ``gpu``; None: for GPUs of other machines.

    Raises:
        EdgeAwqError: there is none; every one is named, with the reason.
    """
    reasons = []
    for runtime in RUNTIMES:
        try:
            _check_gpu(runtime, gpu)
            return runtime, load(runtime)
        except EdgeAwqError as error:
            reasons.append(error.message)
    raise EdgeAwqError(f"nothing runs engines without plugins here: {'; '.join(reasons)}",
                       hint="pip install 'edge-awq[rtx]' for RTX GPUs, a newer TensorRT elsewhere; or leave "
                            "--plugin-free out")


def load(runtime: Runtime) -> Toolkit:
    """The runtime's Python module.

    Raises:
        EdgeAwqError: it is not installed, does not load, is older than the ops of the lowering, or newer than is known.
    """
    try:
        trt = require(runtime.module, runtime.extra)
    except EdgeAwqError as error:
        raise EdgeAwqError(f"{runtime.name} is not installed", hint=error.hint) from error
    except ImportError as error:  # the binding is there, a library below it is not
        raise EdgeAwqError(f"{runtime.name} cannot be loaded: {error}", hint=OTHER_ENGINES) from error
    version = tuple(int(number) for number in re.findall(r"\d+", trt.__version__)[:3])
    if not runtime.first <= version < (runtime.last_major + 1,):
        first = ".".join(map(str, runtime.first))
        raise EdgeAwqError(f"{runtime.name} {trt.__version__} has no engines without plugins, {first} to "
                           f"{runtime.last_major}.x have", hint=f"install such a version, or {OTHER_ENGINES}")
    return Toolkit(trt, version, log_of(trt), runtime.name)


def find_by_name(name: str) -> Runtime:
    """The runtime called ``name``.

    Raises:
        EdgeAwqError: it is none of them.
    """
    found = {runtime.name: runtime for runtime in RUNTIMES}
    if name not in found:
        raise EdgeAwqError(f"no plugin-free engine for the runtime '{name}'", hint=f"known: {', '.join(found)}")
    return found[name]


def _check_gpu(runtime: Runtime, gpu: Gpu | None) -> None:
    if gpu is None and runtime.capabilities is None:
        raise EdgeAwqError(f"{runtime.name} builds for a GPU that is here, and none is", hint=OTHER_ENGINES)
    if gpu is not None and runtime.capabilities and gpu.compute_capability not in runtime.capabilities:
        capability = ".".join(map(str, gpu.compute_capability))
        raise EdgeAwqError(f"{runtime.name} has no engines for {gpu.name} (compute capability {capability})",
                           hint=OTHER_ENGINES)
