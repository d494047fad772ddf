"""The runtime "onnxruntime": any x86-64 or aarch64 CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_awq.bundle import ENGINES, Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.progress import Progress

if TYPE_CHECKING:
    from edge_awq.engine.ort.compile import EngineReport
    from edge_awq.engine.ort.engine import OrtEngine


def compile_bundle(folder: Path, probe: Sequence[int]) -> EngineReport:
    """Compile the graph of a bundle's ``folder``, checked on the tokens ``probe``; see edge_awq.engine.ort.compile."""
    from edge_awq.engine.ort import compile as compiler  # onnx is needed to compile, not to run

    return compiler.compile_bundle(folder, probe)


def open_engine(bundle: Bundle, threads: int | None = None, context: int | None = None,
                progress: Progress | None = None, kv_bits: int | None = None) -> OrtEngine:
    """The engine of a compiled bundle.

    Args:
        threads: None takes one per physical core.
        context: tokens that the KV cache can hold, at most the bundle's; None takes the bundle's.
        progress: hears nothing, as nothing is compiled here.
        kv_bits: for GPUs only.

    Raises:
        EdgeAwqError: an argument is impossible, or the bundle was not compiled for onnxruntime by this version.
    """
    from edge_awq.engine.ort.engine import EngineSettings, OrtEngine
    from edge_awq.engine.ort.names import engine_name
    from edge_awq.engine.ort.session import SessionSettings

    manifest = bundle.manifest
    if kv_bits is not None:
        raise EdgeAwqError(f"kv_bits = {kv_bits}, but {bundle.path} runs on processors, where the KV cache is float32",
                           hint="leave --kv-bits out; to choose it, build for a GPU: edge-awq build --target")
    if context is not None and context > manifest.context:
        raise EdgeAwqError(f"context = {context}, but {bundle.path} was built for {manifest.context} tokens",
                           hint=f"use at most {manifest.context}, or build for a target with a larger max_context")
    settings = EngineSettings(manifest.context if context is None else context, manifest.prefill_chunk,
                              SessionSettings(threads))
    return OrtEngine(bundle.path / ENGINES / engine_name(bundle.graph), bundle.weights, settings)
