"""Times of the kernels on this GPU: cold weights, graphs, medians; beside the device's own read ceiling and torch.

How it is measured is written into the result file. A shape that the kernels refuse is a row with the refusal.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cuda_driver import GpuError
from device_ops import Device, OpError
from gpu_peers import torch_peers
from gpu_workloads import Maker, Model, Workload, attention, layers, matmul

CEILING_BYTES = 1 << 30
SMI_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw",
              "power.limit", "temperature.gpu", "clocks_throttle_reasons.active", "utilization.gpu")
ROWS = (1, 2, 4, 8, 16, 32, 64)
PREFILL_ROWS = 2048
METHOD = (
    "Each launch reads weights of its own; together they are at least four times the L2 cache. All are captured in one "
    "CUDA graph; time per launch is a replay's time, between two events, divided by their number. Peers are replayed "
    "in turn with ours. Median, 10th and 90th percentile of the repeats. Weights are random.")


@dataclass(frozen=True)
class Row:
    """One line of the table. Times in seconds; None was not measured, ``note`` says why."""

    name: str
    seconds: float | None = None
    p10: float | None = None
    p90: float | None = None
    bytes: int | None = None
    flops: int | None = None
    note: str = ""
    details: dict[str, object] = field(default_factory=dict)

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second."""
        return None if self.seconds is None or not self.bytes else self.bytes / self.seconds


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    models: Sequence[Model]
    repeats: int = 50
    rows: Sequence[int] = ROWS
    prefill_rows: int = PREFILL_ROWS
    least_layers: int = 8
    past: int = 2048
    ceiling_bytes: int = CEILING_BYTES


@dataclass
class Bench:
    """A run of all measurements on one device."""

    device: Device
    settings: Settings
    rng: np.random.Generator
    tell: Callable[[str], None] = lambda text: None
    rows: list[Row] = field(default_factory=list)

    @property
    def maker(self) -> Maker:
        return Maker(self.device, self.rng)

    def run(self) -> list[Row]:
        """Everything; the read ceiling is the first row."""
        self.rows.append(self.read_ceiling())
        for model in self.settings.models:
            self.tell(model.name)
            for shape in dict.fromkeys(model.matrices.values()):
                self.measure(lambda shape=shape, model=model: matmul(self.maker, shape, model.group_size),
                             peers=(shape, model.group_size))
            self.measure(lambda model=model: matmul(self.maker, (model.vocabulary, model.hidden), model.group_size))
            for kv_bits in (16, 8):
                self.measure(lambda model=model, kv_bits=kv_bits: attention(self.maker, model, self.settings.past,
                                                                            kv_bits=kv_bits))
            self.measure(lambda model=model: attention(self.maker, model, 0, self.settings.prefill_rows))
            for dependent in (0, 1) if self.device.gpu.compute_capability >= 90 else (0,):
                for matrices_only in (True, False):
                    self.chain(model, matrices_only, dependent)
        self.cost_of_rows(self.settings.models[0])
        self.prompt(self.settings.models[0])
        return self.rows

    def chain(self, model: Model, matrices_only: bool, dependent: int) -> None:
        """Layers of ``model`` in a row."""
        weight_bytes = sum(N * K // 2 for N, K in model.matrices.values())
        count = max(self.settings.least_layers, -(-4 * self.device.gpu.l2_bytes // weight_bytes))
        self.device.library.edge_awq_set_dependent_launch(dependent)
        self.measure(lambda: layers(self.maker, model, count, matrices_only, self.settings.past),
                     suffix=", dependent launch" if dependent else "")
        self.device.library.edge_awq_set_dependent_launch(0)

    def cost_of_rows(self, model: Model) -> None:
        """What more tokens at once cost, to a prompt."""
        self.tell("rows")
        for rows in (*self.settings.rows, self.settings.prefill_rows):
            for kind in ("int4", "int8", "fp16"):
                shape = model.matrices["up"]
                self.measure(lambda shape=shape, rows=rows, kind=kind: matmul(
                    self.maker, shape, model.group_size, rows, kind),
                    peers=(shape, model.group_size) if kind == "int4" else None)

    def prompt(self, model: Model) -> None:
        """A prompt's matrices with weights of 4 bits, with these made halves first, and with halves."""
        self.tell("prompt")
        for rows in (-(-self.settings.prefill_rows // 2), self.settings.prefill_rows):
            for shape in dict.fromkeys(model.matrices.values()):
                for kind in ("int4", "int4 dequantized", "fp16"):
                    self.measure(lambda shape=shape, rows=rows, kind=kind: matmul(
                        self.maker, shape, model.group_size, rows, kind))

    def measure(self, make: Callable[[], Workload], peers: tuple | None = None, suffix: str = "") -> None:
        """Append the rows of a workload and of its peers, taken in turn; free what they used."""
        try:
            work = make()
            for launch in work.launches:
                launch()  # errors come out here, not from a capture
            self.device.gpu.synchronize()
            work.check()
        except OpError as error:
            self.rows.append(Row(str(error), note="refused"))
            self.device.free_all()
            return
        graph = self.device.gpu.capture(lambda: [launch() for launch in work.launches])
        timed = {work.name + suffix: lambda: graph.seconds() / len(work.launches)}
        if peers:
            found = torch_peers(*peers, work.details["rows"], 4 * self.device.gpu.l2_bytes)
            timed |= {name: each for name, each in found.items() if callable(each)}
            missing = [Row(name, note=each) for name, each in found.items() if isinstance(each, str)]
            self.rows += [row for row in missing if row not in self.rows]
        times: dict[str, list[float]] = {name: [] for name in timed}
        for seconds in timed.values():
            seconds()  # warm
        for _ in range(self.settings.repeats):
            for name, seconds in timed.items():
                times[name].append(seconds())
        work.check()
        graph.close()
        self.device.free_all()
        for name, values in times.items():
            is_ours = name == work.name + suffix
            low, *_, high = statistics.quantiles(values, n=10)
            self.rows.append(Row(name, statistics.median(values), low, high, work.bytes_each if is_ours else None,
                                 work.flops_each, details=work.details))

    def read_ceiling(self) -> Row:
        """How fast the device reads, at best: the fastest of several grids."""
        self.tell("read ceiling")
        data = self.device.empty((self.settings.ceiling_bytes // 4,), np.uint32)
        best: Row | None = None
        for per_multiprocessor in (4, 8, 16, 32):
            blocks = per_multiprocessor * self.device.gpu.multiprocessors
            sums = self.device.empty((blocks * 256,), np.uint32)
            graph = self.device.gpu.capture(
                lambda blocks=blocks, sums=sums: self.device.read_memory(data, sums, blocks))
            graph.seconds()
            values = [graph.seconds() for _ in range(self.settings.repeats)]
            graph.close()
            low, *_, high = statistics.quantiles(values, n=10)
            row = Row("read ceiling", statistics.median(values), low, high, data.nbytes, details={"blocks": blocks})
            best = row if best is None or row.seconds < best.seconds else best
        self.device.free_all()
        return best


def conditions() -> dict[str, str]:
    """What nvidia-smi says of device 0 now; empty where it is missing."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        return {"nvidia-smi": done.stdout.strip() or done.stderr.strip()}
    return dict(zip(SMI_FIELDS, (part.strip() for part in done.stdout.splitlines()[0].split(",")), strict=False))


def report(bench: Bench, before: dict[str, str], seed: int, started: float) -> dict[str, object]:
    """The whole result of measuring, for a file."""
    gpu = bench.device.gpu
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False,
                         cwd=Path(__file__).parent)
    return {
        "schema": 1,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "took_s": round(time.monotonic() - started, 1),
        "revision": git.stdout.strip() or None,
        "seed": seed,
        "method": METHOD,
        "device": {"name": gpu.name, "compute_capability": gpu.compute_capability / 10,
                   "multiprocessors": gpu.multiprocessors, "l2_bytes": gpu.l2_bytes, "memory_bytes": gpu.memory_bytes,
                   "driver_api": gpu.driver_version, "bandwidth_bytes_per_s": gpu.bandwidth},
        "conditions_before": before,
        "conditions_after": conditions(),
        "kernels": bench.device.library.edge_awq_kernels().decode().splitlines(),
        "rows": [vars(row) | {"bytes_per_s": row.bandwidth} for row in bench.rows],
    }


def table(bench: Bench) -> Table:
    """Times, bandwidths, and their shares of what the memory could do."""
    gpu, ceiling = bench.device.gpu, bench.rows[0].bandwidth
    made = Table(title=f"{gpu.name}, {gpu.bandwidth / 1e9:.0f} GB/s in theory, {ceiling / 1e9:.0f} GB/s read")
    made.add_column("")
    for column in ("us", "p10", "p90", "GB/s", "of theory", "of ceiling", "TFLOP/s"):
        made.add_column(column, justify="right")
    for row in bench.rows:
        if row.seconds is None:
            made.add_row(row.name, row.note)
            continue
        speed = ["", "", ""] if row.bandwidth is None else [
            f"{row.bandwidth / 1e9:.0f}", f"{row.bandwidth / gpu.bandwidth:.1%}", f"{row.bandwidth / ceiling:.1%}"]
        times = [f"{seconds * 1e6:.2f}" for seconds in (row.seconds, row.p10, row.p90)]
        made.add_row(row.name, *times, *speed, f"{row.flops / row.seconds / 1e12:.1f}" if row.flops else "")
    return made


def run_bench(device: Device, settings: Settings, output: Path, seed: int, console: Console,
              checks: Mapping[str, object]) -> None:
    """Measure, print the table, write the file, which also gets ``checks``.

    Raises:
        GpuError, AssertionError: a launch failed, or left wrong numbers behind.
    """
    started, before = time.monotonic(), conditions()
    bench = Bench(device, settings, np.random.default_rng(seed), lambda text: console.print(f"measuring: {text}"))
    try:
        bench.run()
    finally:
        if bench.rows:
            unfinished = output.with_name(output.name + ".partial")
            result = report(bench, before, seed, started) | checks
            unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(output)
    console.print(table(bench))


__all__ = ["GpuError", "Settings", "run_bench"]
