"""Compilation for onnxruntime: the canonical graph is lowered, checked on a probe, and written for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from edge_awq.bundle import ENGINES, GRAPH, WEIGHTS, write_bytes
from edge_awq.engine.ort.accuracy import LIMIT, AccuracyReport, above_limit, compare, find_logits, run_probe, set_levels
from edge_awq.engine.ort.lower import LoweringReport, lower
from edge_awq.engine.ort.names import RUNTIME, engine_name
from edge_awq.engine.ort.runtime import onnxruntime
from edge_awq.errors import EdgeAwqError


@dataclass(frozen=True)
class EngineReport:
    """How a graph was compiled; ``file`` is relative to the bundle."""

    file: str
    runtime: str
    runtime_version: str
    lowering: LoweringReport
    accuracy: AccuracyReport


def compile_bundle(folder: Path, probe: Sequence[int], limit: float = LIMIT) -> EngineReport:
    """Lower ``folder``/model.onnx, check it on the tokens ``probe``, and write it into ``folder``/engines.

    Matmuls that int8 activations move by more than ``limit`` (relative L2 error) compute with float32 activations. The
    graph runs part after part, so that a model's depth costs time and no memory.

    Raises:
        EdgeAwqError: the graph cannot be read or run, or the probe is empty.
    """
    graph, weights = folder / GRAPH, folder / WEIGHTS
    if not probe:
        raise EdgeAwqError("no tokens to check the compiled graph with", hint="give a longer calibration text")
    try:
        canonical = onnx.load(graph, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise EdgeAwqError(f"{graph}: cannot be read ({error})", hint="build the bundle again") from error
    lowered, lowering = lower(canonical)
    exact = run_probe(lowered, weights, probe)
    set_levels(lowered, above_limit(exact, limit))
    accuracy = compare(exact, find_logits(lowered, weights, probe), limit)

    file = folder / ENGINES / engine_name(graph)
    file.parent.mkdir(exist_ok=True)
    write_bytes(file, lowered.SerializeToString())
    return EngineReport(f"{ENGINES}/{file.name}", RUNTIME, onnxruntime.__version__, lowering, accuracy)
