"""Compilation without plugins: lowered, written out with its weights, built in a process of its own, and stored.

Not yet verified on device.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_awq.bundle import ENGINES, WEIGHTS, Bundle
from edge_awq.engine.standard.build import Profile, build_engine
from edge_awq.engine.standard.lower import lower
from edge_awq.engine.standard.options import LOWERING_VERSION, StandardOptions
from edge_awq.engine.standard.runtimes import Runtime
from edge_awq.engine.standard.write import write
from edge_awq.engine.trt.build import CompileReport, read_graph
from edge_awq.engine.trt.build_progress import UNITS
from edge_awq.engine.trt.passes import DECODE, PREFILL
from edge_awq.engine.trt.plan_cache import write_engine
from edge_awq.errors import EdgeAwqError
from edge_awq.memory import peak_rss_bytes
from edge_awq.progress import Progress

DECODE_ROWS = 8  # tokens of a call that gives the logits of each: one, and guesses
PLAN = "engine"  # name of the one plan, which both passes run
WORK = "plugin_free.partial"  # folder of a build, beside the engines: the graph, its weights once more, the plan


def check_symmetric(bundle: Bundle) -> None:
    """What the manifest says of the weights; the lowering looks at every zero point.

    Raises:
        EdgeAwqError: they have zero points.
    """
    if bundle.manifest.quant and not bundle.manifest.quant.get("symmetric"):
        raise EdgeAwqError(f"{bundle.path} has zero points, and TensorRT's own int4 has none",
                           hint="build it again with --symmetric, or leave --plugin-free out")


def shape_settings(bundle: Bundle, context: int) -> dict[str, Any]:
    """What an engine depends on besides graph and machine: for its key."""
    manifest = bundle.manifest
    return {"lowering": LOWERING_VERSION, "context": context, "prefill_chunk": manifest.prefill_chunk,
            "decode_rows": DECODE_ROWS, "allocation": "user", "weights": manifest.files[WEIGHTS]["sha256"]}


def compile_engine(bundle: Bundle, path: Path, context: int, runtime: Runtime, progress: Progress,
                   forecast_bytes: int) -> CompileReport:
    """Compile ``bundle`` into the file ``path``, which is in it.

    The weights are on the disk twice more meanwhile. What a build that was killed has left, the next one removes.

    Args:
        context: tokens in the KV cache.
        forecast_bytes: for the report.

    Raises:
        EdgeAwqError: the weights have zero points, or the runtime refuses the graph.
    """
    started_s = time.monotonic()
    profiles = _profiles(context, bundle.manifest.prefill_chunk)
    passes = {name: {"plan": PLAN, "profile": index, "most_rows": profile.most_tokens, "weights": [], "declined": [],
                     "last_logits": profile.most_logits < profile.most_tokens}
              for index, (name, profile) in enumerate(profiles.items())}
    work = path.parent / WORK
    shutil.rmtree(work, ignore_errors=True)
    try:
        with progress.track("compile plugin-free", UNITS) as advance:
            lowered = lower(read_graph(bundle), bundle.weights, StandardOptions(context))
            graph = write(lowered, bundle.weights, work)
            report = build_engine(graph, work / PLAN, list(profiles.values()), runtime, advance)
            write_engine(path, {PLAN: np.memmap(work / PLAN, np.uint8, "r")}, passes)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return CompileReport(
        file=f"{ENGINES}/{path.name}",
        runtime=report.runtime,
        runtime_version=report.runtime_version,
        passes={name: profile.most_tokens for name, profile in profiles.items()},
        declined=(),
        engine_bytes=path.stat().st_size,
        compile_s=time.monotonic() - started_s,
        peak_host_bytes=max(report.peak_host_bytes, peak_rss_bytes()),
        forecast_bytes=forecast_bytes,
    )


def _profiles(context: int, prefill_chunk: int) -> dict[str, Profile]:
    """Of each pass; one for prompts only where that takes more tokens."""
    rows, chunk = min(DECODE_ROWS, context), min(prefill_chunk, context)
    decode = {DECODE: Profile(usual_tokens=1, most_tokens=rows, most_logits=rows)}
    return decode | ({PREFILL: Profile(chunk, chunk, most_logits=1)} if chunk > rows else {})
