#!/usr/bin/env python3
"""Speed, memory and load time of target cpu beside llama.cpp and onnxruntime-genai, on one model with random weights.

Each engine runs in a process of its own and stays loaded; engines take turns in shuffled order, and ratios are taken
inside each turn, so that whatever else the machine does hits all of them alike. Engines that are not installed are
left out with a reason. Peers may live in another environment: --peer-python.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from bench_report import EngineRow, Turn, markdown_table, summarize
from edge_awq.bench.random_model import make_random_model
from edge_awq.bench.worker import Candidate, Sample, Worker
from edge_awq.errors import EdgeAwqError
from edge_awq.runner.machine import describe_cpu, describe_software
from edge_awq.shapes import find_shape, shape_names

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".cache" / "bench"
OURS = "edge-awq"
PAUSE_S = 0.1  # longer than any engine here lets idle threads spin
# Peer -> module that must be importable, how bench_models.py calls its format, and the name of the file or folder.
PEERS = {
    "llama.cpp": ("llama_cpp", "gguf", "q4_0.gguf"),
    "onnxruntime-genai": ("onnxruntime_genai", "genai", "genai-int4"),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        prompt: tokens of a prefill.
        rounds: prefills of each engine.
        turns: turns of decoding, of ``turn_tokens`` tokens each.
        loads: fresh processes in which loading is timed.
    """

    prompt: int = 512
    rounds: int = 5
    turns: int = 40
    turn_tokens: int = 4
    loads: int = 3
    seed: int = 0

    @property
    def context(self) -> int:
        """Tokens that every KV cache must hold."""
        return self.prompt + self.turns * self.turn_tokens + 8


@dataclass(frozen=True)
class Measurement:
    """Everything seen at one number of threads.

    Attributes:
        base: the engine that ratios refer to.
        load_average: the machine's, over 1, 5 and 15 minutes, before and after.
        raw: every turn of "prefill" and "decode", and "loads_s".
    """

    threads: int
    base: str
    rows: tuple[EngineRow, ...]
    versions: dict[str, dict[str, str | None]]
    load_average: tuple[tuple[float, ...], tuple[float, ...]]
    raw: dict[str, Any]


@contextmanager
def started(candidates: list[Candidate], threads: int, context: int) -> Iterator[dict[str, Worker]]:
    """All engines, loaded one after the other."""
    with ExitStack() as stack:
        workers = {}
        for candidate in candidates:
            workers[candidate.name] = Worker(candidate, threads, context)
            stack.callback(workers[candidate.name].close)
        yield workers


def measure(candidates: list[Candidate], threads: int, plan: Plan) -> Measurement:
    """All phases at one number of threads."""
    order = random.Random(plan.seed)
    ids = [order.randrange(3, 1000) for _ in range(plan.prompt)]
    load_before = os.getloadavg()
    loads_s = [load_times(candidates, threads, plan.context) for _ in range(plan.loads)]
    with started(candidates, threads, plan.context) as workers:
        for worker in workers.values():  # first use maps pages and sizes buffers
            worker.prefill(ids)
            worker.decode(plan.turn_tokens)
        prefill = [take_turn(workers, order, lambda worker: worker.prefill(ids)) for _ in range(plan.rounds)]
        decode = [take_turn(workers, order, lambda worker: worker.decode(plan.turn_tokens)) for _ in range(plan.turns)]
        peaks = {name: worker.peak_rss_bytes for name, worker in workers.items()}
        versions = {name: worker.versions for name, worker in workers.items()}
    base = next((name for name in PEERS if name in peaks), OURS)
    by_prefill, by_decode = summarize(prefill, base), summarize(decode, base)
    rows = tuple(EngineRow(name, by_prefill[name], by_decode[name], median(one[name] for one in loads_s), peak)
                 for name, peak in peaks.items())
    return Measurement(threads, base, rows, versions, (load_before, os.getloadavg()),
                       {"prefill": prefill, "decode": decode, "loads_s": loads_s})


def load_times(candidates: list[Candidate], threads: int, context: int) -> dict[str, float]:
    """Seconds to load, each engine alone in a fresh process with its files in the page cache."""
    times = {}
    for candidate in candidates:
        with started([candidate], threads, context) as workers:
            times[candidate.name] = workers[candidate.name].load_s
    return times


def take_turn(workers: dict[str, Worker], order: random.Random, work: Callable[[Worker], Sample]) -> Turn:
    """Every engine once, in shuffled order, with a pause in which the threads of the one before stop spinning."""
    samples = {}
    for name in order.sample(list(workers), len(workers)):
        time.sleep(PAUSE_S)
        samples[name] = work(workers[name])
    return {name: samples[name] for name in workers}


def find_candidates(shape: str, folder: Path, peer_python: str) -> tuple[list[Candidate], dict[str, str]]:
    """The engines that can run, their models made where they are missing; and why the others cannot."""
    checkpoint = make_random_model(folder / shape, find_shape(shape))
    candidates, skipped = [Candidate(OURS, our_bundle(checkpoint), sys.executable)], {}
    for name, (module, kind, file) in PEERS.items():
        model = folder / f"{shape}-{file}"
        if subprocess.run([peer_python, "-c", f"import {module}"], capture_output=True, check=False).returncode:
            skipped[name] = f"{peer_python} cannot import {module}"
        elif model.exists() or run([peer_python, HERE / "bench_models.py", kind, checkpoint, model], log_of(model)):
            candidates.append(Candidate(name, model, peer_python))
        else:
            skipped[name] = f"its model could not be made; see {log_of(model)}"
    return candidates, skipped


def our_bundle(checkpoint: Path) -> Path:
    """The checkpoint's bundle; built again when the code that builds it is newer."""
    bundle = checkpoint.with_name(f"{checkpoint.name}.bundle")
    manifest = bundle / "manifest.json"
    newest_s = max(path.stat().st_mtime for path in (HERE.parent / "edge_awq").rglob("*.py"))
    if manifest.is_file() and manifest.stat().st_mtime > newest_s:
        return bundle
    shutil.rmtree(bundle, ignore_errors=True)
    # Plain rounding: the search changes values, not speed. Asymmetric, groups of 128, as the profile says.
    command = [sys.executable, "-m", "edge_awq", "build", checkpoint, "--recipe", "rtn", "-o", bundle]
    if not run(command, log_of(bundle)):
        raise click.ClickException(f"the bundle could not be built; see {log_of(bundle)}")
    return bundle


def run(command: list[Any], log: Path) -> bool:
    """Run a command that makes a model, all it says kept in ``log``; whether it succeeded."""
    parts = [str(part) for part in command]
    click.echo(f"$ {' '.join(parts)}", err=True)
    with log.open("wb") as file:
        return subprocess.run(parts, stdout=file, stderr=file, check=False).returncode == 0


def log_of(model: Path) -> Path:
    """Where the log of a model's making is kept."""
    return model.with_name(f"{model.name}.log")


def model_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def revision() -> str | None:
    """The commit that is measured; "+" says that files differ from it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=HERE, capture_output=True, text=True,
                           check=False)
    return found.stdout.strip() or None


@click.command(help=__doc__)
@click.option("--shape", type=click.Choice(shape_names()), default="tinyllama-1.1b", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), multiple=True, help="May be given again.  [default: 1 and all]")
@click.option("--prompt", type=click.IntRange(min=1), default=Plan.prompt, show_default=True, help="Prefill's tokens.")
@click.option("--rounds", type=click.IntRange(min=1), default=Plan.rounds, show_default=True, help="Prefills.")
@click.option("--turns", type=click.IntRange(min=1), default=Plan.turns, show_default=True, help="Of 4 tokens each.")
@click.option("--peer-python", default=sys.executable, help="Interpreter that has the peers.  [default: this one]")
@click.option("--work", type=click.Path(path_type=Path), default=WORK, show_default=True, help="Where models are kept.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file.  [default: runs/bench-cpu-TIME.json]")
def main(shape: str, threads: tuple[int, ...], peer_python: str, work: Path, output: Path | None, **sizes: int) -> None:
    plan = Plan(**sizes)
    work.mkdir(parents=True, exist_ok=True)
    candidates, skipped = find_candidates(shape, work, peer_python)
    for name, reason in skipped.items():
        click.echo(f"{name}: skipped, {reason}", err=True)
    results = []
    for count in threads or sorted({1, len(os.sched_getaffinity(0))}):
        try:
            results.append(measure(candidates, count, plan))
        except EdgeAwqError as error:
            raise click.ClickException(error.message) from error
        before, after = (average[0] for average in results[-1].load_average)
        click.echo(f"\n{shape}, {count} threads, load average {before:.1f} before and {after:.1f} after\n")
        click.echo(markdown_table(results[-1].rows, results[-1].base, plan.prompt))
    report = {
        "schema": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "revision": revision(),
        "shape": shape,
        "plan": dataclasses.asdict(plan),
        "cpu": describe_cpu(),
        "software": describe_software(),
        "skipped": skipped,
        "model_bytes": {candidate.name: model_bytes(candidate.model) for candidate in candidates},
        "results": [dataclasses.asdict(result) for result in results],
    }
    output = output or HERE.parent / "runs" / f"bench-cpu-{time.strftime('%Y%m%d-%H%M%S')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(f"\n{output}", err=True)


if __name__ == "__main__":
    main()
