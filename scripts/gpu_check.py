#!/usr/bin/env python3
"""On a machine with a GPU: check all kernels, then measure them. Wants numpy, pytest, rich and the plugin library.

    python plugins/build_kernels.py library -o build/plugins      # or EDGE_AWQ_PLUGINS=...
    python scripts/gpu_check.py           # under 8 minutes, up to 4 more with compute-sanitizer; writes gpu-check.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from cuda_driver import GpuError  # noqa: E402
from device_ops import Device, OpError  # noqa: E402
from edge_awq.errors import EdgeAwqError  # noqa: E402
from gpu_bench import Settings, run_bench  # noqa: E402
from gpu_sanitize import Finding, sanitize  # noqa: E402
from gpu_workloads import Model, read_models  # noqa: E402

TINY = Model("tiny", hidden=128, layers=2, heads=2, kv_heads=1, head_size=64, mlp=192, gated=True, group_size=64,
             vocabulary=100)
# pytest's -k for the tests that are quick on fibers, and under a sanitizer.
SMALL = ("not large and not 4544 and not 50257 and not 71 and not 256- and not 33x1088 and not 130 and not 63"
         " and not x80 and not x96 and not 28672")
SANITIZE_S = 60.0


def kernel_tests() -> list[object]:
    """The command that runs them; a missing GPU is a failure."""
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", HERE.parent / "tests" / "gpu" / "test_kernels.py"]


def environment(seed: int) -> dict[str, str]:
    """For kernel_tests()."""
    return os.environ | {"EDGE_AWQ_REQUIRE": "gpu", "EDGE_AWQ_SEED": str(seed)}


def sanitize_kernels(seed: int, seconds: float, console: Console) -> list[Finding]:
    """Small tests under each of compute-sanitizer's tools, and a line for each."""
    findings = sanitize([*kernel_tests(), "-k", SMALL], environment(seed), seconds)
    table = Table("compute-sanitizer", "", "s", "")
    for each in findings:
        table.add_row(each.tool, each.status, "" if each.seconds is None else f"{each.seconds:.1f}", each.note)
    console.print(table)
    return findings


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--model", action="append", help="of figure_models.toml: only this; may be given again")
    parser.add_argument("--repeats", type=int, default=50, help="replays of each graph")
    parser.add_argument("--no-check", action="store_true", help="measure only")
    parser.add_argument("--no-measure", action="store_true", help="check only")
    parser.add_argument("--sanitize", type=float, default=SANITIZE_S, metavar="SECONDS",
                        help="for each of compute-sanitizer's tools, where it is installed; 0 for none")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does the measuring itself work?")
    arguments = parser.parse_args()
    seed = int(np.random.SeedSequence().entropy % 2**32)
    if not arguments.no_check and (status := subprocess.run(kernel_tests(), env=environment(seed),
                                                            check=False).returncode):
        return status
    console = Console()
    findings = sanitize_kernels(seed, arguments.sanitize, console)
    is_clean = not any(each.is_bad for each in findings)
    if arguments.no_measure:
        return 0 if is_clean else fail("compute-sanitizer is not content")
    models = [model for model in read_models() if not arguments.model or model.name in arguments.model]
    if not models:
        return fail(f"no model is called {', '.join(arguments.model)}")
    settings = Settings(models, repeats=max(arguments.repeats, 2))
    if arguments.tiny:
        settings = replace(settings, models=[TINY], rows=(1, 8), prefill_rows=9, least_layers=2, past=40,
                           ceiling_bytes=1 << 16)
    try:
        run_bench(Device(), settings, arguments.output, seed, console,
                  {"compute_sanitizer": [vars(each) for each in findings]})
    except (GpuError, OpError, EdgeAwqError, AssertionError) as error:
        return fail(str(error))
    return 0 if is_clean else fail("compute-sanitizer is not content")


def fail(reason: str) -> int:
    """Say it; the exit status."""
    sys.stderr.write(f"Error: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
