"""Result files: what a benchmark measured, in numbers that others can compare. JSON, one schema, versioned.

    {"schema": "edge-awq.results/1", "results": [{"device": ..., "tok_s_median": ..., ...}, ...],
     "left_out": ["why something was not measured", ...], "meter_warnings": ["what the meter said of itself", ...]}

Null is "not measured" or "not known", never 0. Out of memory is a result: ``oom`` true, every rate null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_awq.bundle import write_text
from edge_awq.errors import EdgeAwqError
from edge_awq.toml import from_table

SCHEMA = "edge-awq.results/1"
FIGURE_PROTOCOL = "figure"  # batch 1, a prompt of 4 tokens, 200 generated, median latency of a step
OWN_ENGINE, BASELINE_ENGINE = "edge-awq", "transformers"
OWN_PRECISIONS = ("w4a16", "fp16")
PRECISIONS = (*OWN_PRECISIONS, "int4")  # int4: 4-bit weights in another program's own format


def form_words(precision: str, variant: str | None) -> str:
    """How an engine runs, for tables and reasons."""
    return f"{precision}, {variant}" if variant else precision


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from; without power mode and clocks a Jetson's number cannot be repeated.

    Attributes:
        utc: when it was measured, ISO 8601 with Z.
        power_mode: the Jetson's, by name.
        clocks: highest and current clocks, in MHz by key.
        meter: what measured the joules; None without one. meter_interval_s: between its samples.
        power_scope: what the joules cover, such as "module" or "gpu-board"; power_rails: whose sum that is.
        bundle_sha256: of the bundle's manifest; engine_sha256: of the engine file.
        random_weights: the exact shape with random weights; speed does not depend on their values.
        run: name of the run directory with the raw samples.
    """

    utc: str
    tool_version: str
    software: dict[str, Any] = field(default_factory=dict)
    power_mode: str | None = None
    clocks: dict[str, Any] | None = None
    meter: str | None = None
    meter_interval_s: float | None = None
    power_scope: str | None = None
    power_rails: tuple[str, ...] = ()
    driver: str | None = None
    l4t: str | None = None
    bundle_sha256: str | None = None
    engine_sha256: str | None = None
    random_weights: bool | None = None
    run: str | None = None


@dataclass(frozen=True)
class Result:
    """One model, engine and precision on one device, by one protocol.

    Attributes:
        device: in words, such as "Jetson AGX Orin 64GB".
        profile: the target profile's name.
        model: an exact shape's name, a hub id, or a bundle's name.
        engine: "edge-awq", "transformers", or another program.
        runtime: what the engine runs on, with its version: "tensorrt 10.3.0".
        variant: what makes our engine another than the usual one, such as "kv-bits 8" or "plugin-free".
        shape: the entry of shapes.toml that the model is exactly as large as, where ``model`` is another name.
        protocol: "figure", "realistic", or a name of its own.
        tok_s_median, tok_s_mad: of decoding, over the repeats; the median absolute deviation.
        j_per_token: energy of decoding per token, with idle power; None without a meter.
        oom: the model did not fit.
        valid: nothing disturbed the run; ``invalid_reasons`` says what did.
        j_per_token_problem: why there are no joules; see edge_awq.power.energy.PhaseEnergy.problem.
        j_per_token_above_idle: the part of it above idle power; j_per_prompt_token: of the prefill, with idle power.
        energy_method, energy_samples, energy_coverage, energy_max_gap_s: of decoding; see PhaseEnergy.
        idle_w: power before the first repeat, with the model loaded.
        peak_rss_bytes: the most memory that the engine's process had resident; load_s: until it was ready.
        mean_w: power while it decoded, idle power with it; None without a meter.
        temp_max_c: the hottest that GPU or junction were seen; throttled: heat or current held the clocks down.
    """

    device: str
    profile: str
    model: str
    engine: str
    precision: str
    protocol: str
    prompt_tokens: int
    generated_tokens: int
    repeats: int
    tok_s_median: float | None
    tok_s_mad: float | None
    j_per_token: float | None
    oom: bool
    valid: bool
    provenance: Provenance
    invalid_reasons: tuple[str, ...] = ()
    prefill_tok_s_median: float | None = None
    runtime: str | None = None
    shape: str | None = None
    j_per_token_problem: str | None = None
    j_per_token_above_idle: float | None = None
    j_per_prompt_token: float | None = None
    energy_method: str | None = None
    energy_samples: int | None = None
    energy_coverage: float | None = None
    energy_max_gap_s: float | None = None
    idle_w: float | None = None
    peak_rss_bytes: int | None = None
    load_s: float | None = None
    mean_w: float | None = None
    temp_max_c: float | None = None
    throttled: bool | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        name = f"result of {self.model} on {self.device}"
        if self.precision not in PRECISIONS:
            raise EdgeAwqError(f"{name}: precision '{self.precision}' is not known",
                               hint=f"known: {', '.join(PRECISIONS)}")
        if self.oom != (self.tok_s_median is None):
            raise EdgeAwqError(f"{name}: oom is {self.oom} and tok_s_median {self.tok_s_median}",
                               hint="a result is either out of memory or has a rate")
        if self.tok_s_median is not None and self.tok_s_median <= 0:
            raise EdgeAwqError(f"{name}: tok_s_median = {self.tok_s_median:g} is no rate", hint="measure again")
        if self.valid == bool(self.invalid_reasons):
            raise EdgeAwqError(f"{name}: valid is {self.valid} and {len(self.invalid_reasons)} reasons are given",
                               hint="an invalid result says why, a valid one has no reasons")

    @property
    def form(self) -> str:
        """Precision and variant, in words."""
        return form_words(self.precision, self.variant)

    @property
    def group(self) -> str:
        """Whose bars it stands with in the figure."""
        return self.shape or self.model


@dataclass(frozen=True)
class StoredResult:
    """A result and the file that it was read from."""

    result: Result
    path: Path


def write_results(path: Path, results: Iterable[Result], left_out: Sequence[str] = (),
                  meter_warnings: Sequence[str] = ()) -> None:
    """Write a result file, whole or not at all."""
    write_text(path, results_json(results, left_out, meter_warnings) + "\n")


def results_json(results: Iterable[Result], left_out: Sequence[str] = (), meter_warnings: Sequence[str] = ()) -> str:
    """The text of a result file."""
    table = {"schema": SCHEMA, "results": [dataclasses.asdict(result) for result in results],
             "left_out": list(left_out), "meter_warnings": list(meter_warnings)}
    return json.dumps(table, indent=1, allow_nan=False)


def read_results(path: Path) -> list[StoredResult]:
    """Read a result file.

    Raises:
        EdgeAwqError: it is empty, cut off, of another schema version, or says something impossible.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise EdgeAwqError(f"{path}: the file is empty", hint="measure again, or leave it out")
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise EdgeAwqError(f"{path}: cut off or no JSON ({error})", hint="copy it again, or leave it out") from error
    schema = table.get("schema") if isinstance(table, dict) else None
    if schema != SCHEMA:
        raise EdgeAwqError(f"{path}: {_about_schema(schema)}",
                           hint=f"this edge-awq reads {SCHEMA}; measure again with it, or report with the version "
                                "that wrote the file")
    entries = table.get("results")
    if not isinstance(entries, list) or not entries:
        raise EdgeAwqError(f"{path}: it holds no results", hint="measure again, or leave it out")
    return [StoredResult(from_table(Result, entry, f"{path}: result {number}"), path)
            for number, entry in enumerate(entries, 1)]


def _about_schema(schema: Any) -> str:
    if isinstance(schema, str) and schema.startswith("edge-awq.results/"):
        return f"results of schema version {schema.rpartition('/')[2]}, not {SCHEMA.rpartition('/')[2]}"
    return f"no result file (schema {schema!r})"
