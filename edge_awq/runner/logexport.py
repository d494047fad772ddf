"""A run as a table, as JSON, or as what llama.cpp's llama-bench writes."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from typing import Any

from edge_awq import __version__
from edge_awq.runner.logread import COLUMNS, Run, request_row

FORMATS = ("md", "csv", "json", "llama-bench")


def export_run(run: Run, kind: str) -> str:
    """The run's requests as text in one of FORMATS; what was not measured is empty or null."""
    rows = [request_row(request) for request in run.requests]
    if kind == "json":
        whole = {"path": run.path.name, "whole": run.whole, "start": run.start, "requests": run.requests,
                 "warnings": run.warnings, "summary": run.summary}
        return json.dumps(whole, indent=1, ensure_ascii=False)
    if kind == "llama-bench":
        return json.dumps([test for request in run.requests for test in _llama_bench(run, request)], indent=2)
    table = [["" if row[name] is None else row[name] for name in COLUMNS] for row in rows]
    return _markdown(COLUMNS, table) if kind == "md" else _csv(COLUMNS, table)


def _csv(names: Sequence[str], table: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *table])
    return text.getvalue().rstrip("\n")


def _markdown(names: Sequence[str], table: list[list[Any]]) -> str:
    lines = [names, ["---:"] * len(names), *table]
    return "\n".join("| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line) + " |"
                     for line in lines)


def _llama_bench(run: Run, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompt processing and text generation as two tests, in the fields of llama-bench's JSON.

    Its times leave out drawing tokens and text; ours hold both. Its generation counts the tokens that were evaluated.
    """
    start, depth = run.start, request["n_ctx_start"]
    common = {
        "build_commit": start["git_commit"], "build_number": None, "build_version": __version__,
        "cpu_info": start["cpu"]["name"], "gpu_info": (start["gpu"] or {}).get("name"),
        "backends": start["engine"]["runtime"] if start["engine"] else None,
        "model_filename": start["model"]["name"] if start["model"] else None,
        "model_type": f"{start['model']['family']} {start['model']['precision']}" if start["model"] else None,
        "model_size": None, "model_n_params": None,
        "n_threads": start["settings"]["threads"] if start["settings"] else None,
    }
    tests = [(request["n_prompt"], 0, depth, request["prefill_s"]),
             (0, request["n_gen"] - 1, depth + request["n_prompt"], request["decode_s"])]
    return [{**common, "n_prompt": prompt, "n_gen": generated, "n_depth": at, "test_time": start["anchor"]["utc"],
             **_samples(prompt + generated, [seconds])}
            for prompt, generated, at, seconds in tests if seconds and prompt + generated > 0]


def _samples(tokens: int, seconds: list[float]) -> dict[str, Any]:
    """Mean and deviation over repetitions, as llama-bench names them."""
    samples_ns = [round(second * 1e9) for second in seconds]
    rates = [tokens / second for second in seconds]
    deviate = statistics.stdev if len(seconds) > 1 else lambda values: 0.0
    return {
        "avg_ns": round(statistics.mean(samples_ns)), "stddev_ns": round(deviate(samples_ns)),
        "avg_ts": statistics.mean(rates), "stddev_ts": deviate(rates),
        "samples_ns": samples_ns, "samples_ts": rates,
    }
