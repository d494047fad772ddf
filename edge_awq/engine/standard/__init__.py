"""Engines without plugins, of standard ONNX ops alone: TensorRT-RTX, and TensorRT from 10.15 on.

For symmetric bundles, where ``--plugin-free`` asks for them. They hold the weights, and a KV cache of fixed size that
attention reads from end to end; ``edge_awq.engine.trt`` runs them. Not yet verified on device.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edge_awq.bundle import Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.progress import Progress, Quiet

if TYPE_CHECKING:
    from edge_awq.engine.trt.bindings import Toolkit
    from edge_awq.engine.trt.build import CompileReport
    from edge_awq.engine.trt.plan_cache import StoredEngine
    from edge_awq.engine.trt.runtime import TrtEngine
    from edge_awq.gpus import Gpu

KV_BITS = 16  # of a cached key or value


def compile_bundle(folder: Path, progress: Progress | None = None, fresh: bool = False) -> CompileReport | None:
    """Compile the bundle ``folder`` with its own context; None: an engine that fits is there already.

    TensorRT-RTX needs no GPU for that.

    Args:
        fresh: compile even then.

    Raises:
        EdgeAwqError: the bundle has zero points or cannot be written to, no runtime is here, or it refuses the graph.
    """
    from edge_awq.gpus import query_gpus

    bundle = Bundle.open(folder)
    gpu = next(iter(query_gpus()), None)
    return _compile(bundle, gpu, bundle.manifest.context, progress or Quiet(), fresh)[2]


def open_engine(bundle: Bundle, threads: int | None = None, context: int | None = None,
                progress: Progress | None = None, kv_bits: int | None = None) -> TrtEngine:
    """The engine of a bundle, compiled now if there is none that fits.

    Args:
        threads: for processors only.
        context: tokens that the KV cache holds, at most the bundle's; None takes the bundle's. Each has its engine.
        kv_bits: of a cached key or value; None or 16.

    Raises:
        EdgeAwqError: as ``compile_bundle``; or an argument is impossible, or the model does not fit into memory.
    """
    from edge_awq.engine.trt import pick_context
    from edge_awq.engine.trt.cuda import open_cuda
    from edge_awq.engine.trt.kernel_cache import KernelCache
    from edge_awq.engine.trt.plan_cache import kernels_path
    from edge_awq.engine.trt.runtime import TrtEngine

    context = pick_context(bundle, threads, context)
    if kv_bits not in (None, KV_BITS):
        raise EdgeAwqError(f"kv_bits = {kv_bits}, but without plugins keys and values have {KV_BITS} bits",
                           hint="leave --kv-bits or --plugin-free out")
    progress = progress or Quiet()
    cuda = open_cuda()
    try:
        toolkit, stored, _ = _compile(bundle, cuda.gpu, context, progress)
        kernels = None
        if hasattr(toolkit.trt, "IRuntimeCache"):  # TensorRT-RTX's alone
            kernels = KernelCache(kernels_path(bundle.path / stored.file, cuda.gpu), toolkit, progress.note)
        return TrtEngine(toolkit, cuda, stored, bundle.weights, context, kernels)
    except BaseException:
        cuda.close()
        raise


def _compile(bundle: Bundle, gpu: Gpu | None, context: int, progress: Progress,
             fresh: bool = False) -> tuple[Toolkit, StoredEngine, CompileReport | None]:
    """Compile where that is needed, and say why."""
    from edge_awq.detect import read_machine
    from edge_awq.engine.standard.compile import check_symmetric, compile_engine, shape_settings
    from edge_awq.engine.standard.runtimes import find_runtime
    from edge_awq.engine.trt.compile_once import Request, find_or_compile
    from edge_awq.engine.trt.forecast import PLUGIN_FREE, Wanted
    from edge_awq.engine.trt.plan_cache import engine_path, hash_graph, make_key

    check_symmetric(bundle)
    runtime, toolkit = find_runtime(gpu)
    machine = read_machine()
    key = make_key(toolkit, None if runtime.capabilities else gpu, machine.power_mode, f"context{context}",
                   hash_graph(bundle.graph, shape_settings(bundle, context)))
    key = dataclasses.replace(key, contract=None)
    path = engine_path(bundle.path, key)
    stored, report = find_or_compile(
        Request(bundle, machine, key, Wanted(context, KV_BITS, PLUGIN_FREE), fresh), progress,
        lambda forecast_bytes: compile_engine(bundle, path, context, runtime, progress, forecast_bytes))
    return toolkit, stored, report
