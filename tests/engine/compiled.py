"""Compiled engines of tiny models, for tests of the engine of target cpu."""

from __future__ import annotations

from pathlib import Path

from built import random_ids

from edge_awq.engine.ort.compile import compile_bundle
from edge_awq.engine.ort.engine import EngineSettings, OrtEngine
from edge_awq.engine.ort.session import SessionSettings

CONTEXT = 64
ALL_FLOAT = 0.0  # no error passes this limit, so every matmul gets float32 activations
ALL_INT8 = float("inf")
IDS = random_ids(40)


def compiled(folder: Path, limit: float, chunk: int = 16, context: int = CONTEXT) -> OrtEngine:
    report = compile_bundle(folder, IDS[:24], limit)
    settings = EngineSettings(context, chunk, SessionSettings(threads=1))
    return OrtEngine(folder / report.file, folder / "weights.safetensors", settings)
