"""Speed of whole models by TensorRT on this GPU, by the AWQ figure's protocol, beside Hugging Face float16.

Every row is written to the result file as soon as it is there, and a run that finds it goes on behind it. A model that
does not fit, and a peer that is not installed, are rows that say so.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_awq.bench.bench import BenchRequest, run_bench
from edge_awq.bench.protocols import PROTOCOLS
from edge_awq.bench.results import BASELINE_ENGINE, FIGURE_PROTOCOL, OWN_ENGINE, Result
from edge_awq.bundle import Bundle, write_text
from edge_awq.detect import detect_target, read_machine
from edge_awq.errors import EdgeAwqError
from edge_awq.gpus import Gpu
from edge_awq.plan.sizes import sizes_of_bundle
from edge_awq.power.base import MeterChoice
from edge_awq.progress import Progress
from edge_awq.runner.metrics import share_of_roof
from edge_awq.shapes import Shape
from gpu_bench import conditions
from random_bundle import Decoder, make_random_bundle

HERE = Path(__file__).resolve().parent
SCHEMA = 1
CONTEXT = 512
METHOD = (
    "Batch 1, a prompt of 4 tokens, 200 generated; a repeat's rate is 1 / the median latency of a step, the row's the "
    "median of the repeats, with their median absolute deviation. Greedy choice is part of a step. Share of the roof: "
    "bytes of weights that a token reads * tokens/s / the memory's bandwidth in theory. Weights are random.")
_COMPILE = "import sys; sys.path[:0] = sys.argv[2:]; import trt_bench; trt_bench.print_compiled(sys.argv[1])"


@dataclass(frozen=True)
class Row:
    """One model, precision and engine. None was not measured; ``note`` says why, or what else there is to say.

    Attributes:
        weight_bytes: of the weights that one token reads; for transformers those of our float16 bundle.
        compiled: what compiling the engine took, as edge_awq.engine.trt.build.CompileReport has it.
        details: whatever else the measurement says.
    """

    model: str
    precision: str
    engine: str
    tok_s: float | None = None
    tok_s_mad: float | None = None
    share_of_roof: float | None = None
    weight_bytes: int | None = None
    oom: bool = False
    note: str = ""
    compiled: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """A result, not a failure that another run may not meet."""
        return self.tok_s is not None or self.oom

    @property
    def key(self) -> tuple[str, str, str]:
        """What is measured once."""
        return self.model, self.precision, self.engine


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        work: folder for bundles; of each there is one at a time unless ``keep``.
        peer_python: interpreters in which torch and transformers may be; the first that has them.
    """

    shapes: Sequence[Shape]
    precisions: Sequence[str] = ("w4a16", "fp16")
    repeats: int = 5
    context: int = CONTEXT
    work: Path = Path(".cache/trt-bench")
    keep: bool = False
    peer_python: Sequence[str] = (sys.executable, "python3")


class Results:
    """The file of rows; one of another device or revision is begun anew."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path, self.header, self.rows = path, header, {}
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if all(kept.get(name) == header[name] for name in ("schema", "revision", "device", "tensorrt")):
            self.rows = {row.key: row for row in (Row(**table) for table in kept["rows"]) if row.is_final}

    def add(self, row: Row) -> Row:
        """Keep a row, on the disk too."""
        self.rows[row.key] = row
        table = self.header | {"rows": [dataclasses.asdict(each) for each in self.rows.values()]}
        write_text(self.path, json.dumps(table, indent=1) + "\n")
        return row


@dataclass(frozen=True)
class Bench:
    """A run of all measurements on one GPU."""

    gpu: Gpu
    settings: Settings
    results: Results
    progress: Progress
    tell: Callable[[str], None]

    def run(self) -> None:
        """Everything that is not in the results."""
        for shape in self.settings.shapes:
            for precision in self.settings.precisions:
                if (shape.name, precision, OWN_ENGINE) not in self.results.rows:
                    self.tell(f"{shape.name} {precision}")
                    self.results.add(self.own(shape, precision))
            if (shape.name, "fp16", BASELINE_ENGINE) not in self.results.rows:
                self.tell(f"{shape.name} {BASELINE_ENGINE}")
                self.results.add(self.peer(shape))

    def own(self, shape: Shape, precision: str) -> Row:
        """Our engine: weights are made, it is compiled in a process of its own, and measured in another."""
        before, folder = conditions(), self.settings.work / f"{shape.name}-{precision}.bundle"
        row = Row(shape.name, precision, OWN_ENGINE)
        try:
            decoder = Decoder.of(shape, precision, context=self.settings.context)
            bundle = make_random_bundle(folder, shape, decoder, detect_target(), progress=self.progress)
            row = dataclasses.replace(row, weight_bytes=sizes_of_bundle(bundle).token_bytes)
            row = dataclasses.replace(row, compiled=compile_apart(bundle))
            request = BenchRequest((bundle.path,), FIGURE_PROTOCOL, self.settings.repeats, shape=shape.name,
                                   meter=MeterChoice(device="gpu"))
            outcome = run_bench(request, self.progress)
            return self._measured(row, outcome.results[0], {"before": before, "after": conditions()})
        except EdgeAwqError as error:
            is_full = "out of memory" in error.message or "out of GPU memory" in error.message
            return dataclasses.replace(row, oom=is_full, note=f"{error.message}; {error.hint}")
        finally:
            if not self.settings.keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _measured(self, row: Row, result: Result, seen: dict[str, Any]) -> Row:
        note = "out of memory" if result.oom else "; ".join(result.invalid_reasons)
        return dataclasses.replace(
            row, tok_s=result.tok_s_median, tok_s_mad=result.tok_s_mad, oom=result.oom, note=note,
            share_of_roof=share_of_roof(row.weight_bytes, result.tok_s_median, self.gpu.bandwidth_gb_s),
            details={"conditions": seen, "result": dataclasses.asdict(result)})

    def peer(self, shape: Shape) -> Row:
        """transformers in float16, in whichever interpreter has it."""
        row = Row(shape.name, "fp16", BASELINE_ENGINE)
        notes = []
        case = PROTOCOLS[FIGURE_PROTOCOL].cases[0]
        for python in self.settings.peer_python:
            command = [python, HERE / "trt_peers.py", json.dumps(shape.config), case.prompt_tokens, case.steps,
                       self.settings.repeats]
            found = ask([str(part) for part in command])
            if found.get("tok_s") is None and not found.get("oom"):
                notes.append(f"{python}: {found['note']}")
                continue
            own = self.results.rows.get((shape.name, "fp16", OWN_ENGINE))
            weight_bytes = own.weight_bytes if own else None
            return dataclasses.replace(
                row, tok_s=found.get("tok_s"), tok_s_mad=found.get("tok_s_mad"), oom=bool(found.get("oom")),
                weight_bytes=weight_bytes, note=found.get("note", ""), details=found,
                share_of_roof=share_of_roof(weight_bytes, found.get("tok_s"), self.gpu.bandwidth_gb_s))
        return dataclasses.replace(row, note="; ".join(dict.fromkeys(notes)))


def ask(command: Sequence[str]) -> dict[str, Any]:
    """The JSON object on the last line that a program prints; a note where it prints none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return {"note": str(error)}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    said = done.stderr.strip().splitlines()
    return {"note": f"ended with code {done.returncode}: {said[-1] if said else 'nothing was said'}"}


def compile_apart(bundle: Bundle) -> dict[str, Any]:
    """What compiling says, its peak of memory without what made the weights.

    Raises:
        EdgeAwqError: it failed.
    """
    found = ask([sys.executable, "-c", _COMPILE, str(bundle.path), *sys.path])
    if "note" in found:
        raise EdgeAwqError(found["note"], hint=found.get("hint", "run edge-awq compile on the bundle by hand"))
    return found


def print_compiled(path: str) -> None:
    """Compile the bundle at ``path`` and print the report, or the error, as JSON."""
    from edge_awq.engine.trt import compile_bundle

    try:
        report = dataclasses.asdict(compile_bundle(Path(path), fresh=True))
        report["declined"] = len(report["declined"])
        print(json.dumps(report))
    except EdgeAwqError as error:
        print(json.dumps({"note": error.message, "hint": error.hint}))


def header(gpu: Gpu) -> dict[str, Any]:
    """Provenance: what all rows share."""
    from edge_awq.engine.trt.bindings import load_toolkit
    from edge_awq.runner.machine import describe_software

    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE)
    return {
        "schema": SCHEMA, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": git.stdout.strip() or None, "method": METHOD, "device": _as_json(gpu),
        "tensorrt": load_toolkit().version_text, "software": describe_software(), "conditions": conditions(),
    }



def table(results: Results) -> Table:
    """Speed, share of the roof, and how an engine was made."""
    made = Table(title=f"{results.header['device']['name']}, TensorRT {results.header['tensorrt']}, "
                       f"{PROTOCOLS[FIGURE_PROTOCOL].name} protocol")
    made.add_column("")
    for column in ("tok/s", "+/-", "of the roof", "x transformers", "compile s", "host MB", "engine MB"):
        made.add_column(column, justify="right")
    for row in results.rows.values():
        name = f"{row.model} {row.precision} {row.engine}"
        if row.tok_s is None:
            made.add_row(name, row.note)
            continue
        peer = results.rows.get((row.model, "fp16", BASELINE_ENGINE))
        ratio = row.tok_s / peer.tok_s if peer and peer.tok_s else None
        made.add_row(name, f"{row.tok_s:.1f}", _text(row.tok_s_mad, ".2f"), _text(row.share_of_roof, ".1%"),
                     _text(ratio, ".2f"), _text(row.compiled.get("compile_s"), ".1f"),
                     _text(_mb(row.compiled.get("peak_host_bytes")), ".0f"),
                     _text(_mb(row.compiled.get("engine_bytes")), ".1f"))
    return made


def _as_json(gpu: Gpu) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(gpu)))


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _mb(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


def run_all(settings: Settings, output: Path, console: Console, progress: Progress) -> Results:
    """Measure what is missing in ``output``, print the table.

    Raises:
        EdgeAwqError: there is no GPU, no TensorRT or no plugin library.
    """
    gpus = read_machine().gpus
    if not gpus:
        raise EdgeAwqError("NVIDIA's driver finds no GPU", hint="see what nvidia-smi says")
    results = Results(output, header(gpus[0]))
    started_s = time.monotonic()
    Bench(gpus[0], settings, results, progress, lambda text: console.print(
        f"[{time.monotonic() - started_s:4.0f} s] measuring: {text}", markup=False)).run()
    console.print(table(results))
    return results
