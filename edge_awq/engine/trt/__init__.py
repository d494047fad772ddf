"""The runtime "tensorrt": NVIDIA's GPUs from Ampere on, Jetson Orin among them. Not yet verified on device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_awq.bundle import Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.progress import Progress, Quiet

if TYPE_CHECKING:
    from edge_awq.engine.trt.bindings import Toolkit
    from edge_awq.engine.trt.build import CompileReport, Form
    from edge_awq.engine.trt.cuda import Cuda
    from edge_awq.engine.trt.pipelined import PipelinedTrtEngine
    from edge_awq.engine.trt.plan_cache import StoredEngine

USUAL_KV_BITS = 16


def compile_bundle(folder: Path, progress: Progress | None = None, fresh: bool = False,
                   weights_inside: bool = False, kv_bits: int | None = None) -> CompileReport | None:
    """Compile the bundle ``folder`` for this machine; None: an engine for it is there already.

    The machine's memory is looked at before, by its profile.

    Args:
        fresh: compile even then.
        weights_inside: a self-contained engine, beside the other kind; run takes it where that is not there.
        kv_bits: of a cached key or value, 16 or 8; None: 16. Each has its engine.

    Raises:
        EdgeAwqError: see edge_awq.engine.trt.build, and where TensorRT, pycuda, the driver or the plugins are missing.
    """
    from edge_awq.engine.trt.build import Form
    from edge_awq.engine.trt.cuda import open_cuda

    bundle = Bundle.open(folder)
    bundle.check_contract()
    cuda = open_cuda()
    try:
        return _compile(bundle, cuda, progress or Quiet(), [Form(kv_bits or USUAL_KV_BITS, weights_inside)], fresh)[2]
    finally:
        cuda.close()


def open_engine(bundle: Bundle, threads: int | None = None, context: int | None = None,
                progress: Progress | None = None, kv_bits: int | None = None) -> PipelinedTrtEngine:
    """The engine of a bundle, compiled now if there is none that fits this machine.

    Args:
        threads: for processors only.
        context: tokens that the KV cache can hold, at most the bundle's; None takes the bundle's.
        kv_bits: of a cached key or value, 16 or 8; None: 16.

    Raises:
        EdgeAwqError: an argument is impossible, something is missing here, or the model does not fit into memory.
    """
    from edge_awq.engine.trt.build import Form
    from edge_awq.engine.trt.cuda import open_cuda
    from edge_awq.engine.trt.pipelined import PipelinedTrtEngine

    context = pick_context(bundle, threads, context)
    cuda = open_cuda()
    try:
        forms = [Form(kv_bits or USUAL_KV_BITS, inside) for inside in (False, True)]
        toolkit, stored, _ = _compile(bundle, cuda, progress or Quiet(), forms)
        return PipelinedTrtEngine(toolkit, cuda, stored, bundle.weights, context)
    except BaseException:
        cuda.close()
        raise


def pick_context(bundle: Bundle, threads: int | None, context: int | None) -> int:
    """Tokens in the KV cache: those that are asked for, or the bundle's.

    Raises:
        EdgeAwqError: they are more than the bundle was built for; or threads are asked for, on a GPU.
    """
    limit = bundle.manifest.context
    if threads is not None:
        raise EdgeAwqError(f"threads = {threads}, but {bundle.path} runs on a GPU", hint="leave the threads out")
    if context is not None and not 1 <= context <= limit:
        raise EdgeAwqError(f"context = {context}, but {bundle.path} was built for 1 to {limit} tokens",
                           hint=f"use at most {limit}, or build for a target with a larger max_context")
    return limit if context is None else context


def _compile(bundle: Bundle, cuda: Cuda, progress: Progress, forms: Sequence[Form],
             fresh: bool = False) -> tuple[Toolkit, StoredEngine, CompileReport | None]:
    """Compile where that is needed, and say why: the first of ``forms``, unless an engine of a later one is there."""
    from edge_awq.detect import read_machine
    from edge_awq.engine.trt.bindings import load_toolkit
    from edge_awq.engine.trt.build import compile_engine, shape_settings
    from edge_awq.engine.trt.compile_once import Request, find_or_compile
    from edge_awq.engine.trt.forecast import WEIGHTS_INSIDE, Wanted
    from edge_awq.engine.trt.plan_cache import engine_path, hash_graph, make_key

    toolkit, machine = load_toolkit(), read_machine()
    keys = {make_key(toolkit, cuda.gpu, machine.power_mode, form.name,
                     hash_graph(bundle.graph, shape_settings(bundle, form))): form for form in forms}
    key = next((each for each in keys if engine_path(bundle.path, each).is_file()), next(iter(keys)))
    form = keys[key]
    wanted = Wanted(bundle.manifest.context, form.kv_bits, WEIGHTS_INSIDE if form.weights_inside else None)
    stored, report = find_or_compile(
        Request(bundle, machine, key, wanted, fresh), progress,
        lambda forecast_bytes: compile_engine(bundle, key, toolkit, progress, forecast_bytes, form))
    return toolkit, stored, report
