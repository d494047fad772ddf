"""The gpu lane itself, where there is no GPU: its tests run over the driver made for tests, on fibers."""

import json
import os
import subprocess
import sys
from pathlib import Path

from library_harness import DRIVER_VARIABLE, built_driver, built_library

from edge_awq.plugins import OVERRIDE

HERE = Path(__file__).resolve().parent
SMALL = ("not large and not 4544 and not 50257 and not 71 and not 256- and not 33x1088 and not 130 and not 63"
         " and not x80 and not x96")


def environment():
    """That of a machine whose driver is the one made for tests."""
    return os.environ | {DRIVER_VARIABLE: str(built_driver()), OVERRIDE: str(built_library()),
                         "EDGE_AWQ_REQUIRE": "gpu"}


def test_kernel_tests_run():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "test_kernels.py", "-k", SMALL]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " skipped" not in done.stdout


def measure(output, *options):
    command = [sys.executable, HERE.parents[1] / "scripts" / "gpu_check.py", "--no-check", "--tiny", "--repeats", "2",
               "-o", output, *options]
    return subprocess.run(command, env=environment() | {"COLUMNS": "200"}, capture_output=True, text=True, check=False)


def test_benchmark_runs(tmp_path):
    done = measure(tmp_path / "result.json")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert result["device"]["name"] == "fake" and result["device"]["compute_capability"] == 8.7
    rows = {row["name"]: row for row in result["rows"]}
    assert {"read ceiling", "int4 256x128 g64 M=1", "int4 128x192 g64 M=1", "int4 100x128 g64 M=1",
            "attention 2:1x64 past=40", "attention 2:1x64 past=40 kv8", "attention 2:1x64 past=0 M=9",
            "tiny: 2 matrices", "tiny: 2 layers", "int4 chained 256x128 g64 M=1", "tiny: 2 matrices, int4 chained",
            "int4 dequantized 256x128 g64 M=9", "fp16 256x128 M=9", "int8 384x128 g64 M=8",
            "fp16 384x128 M=8"} <= set(rows)
    timed = [row for row in rows.values() if row["seconds"] is not None]
    assert all(row["p10"] <= row["seconds"] <= row["p90"] and row["seconds"] > 0 for row in timed)
    matrix = rows["int4 256x128 g64 M=1"]  # qkv: nibbles, scales, zero points; x and y
    assert matrix["bytes"] == 256 * 128 // 2 + 256 * 2 * 2 + 256 + 2 * (256 + 128)
    assert matrix["bytes_per_s"] == matrix["bytes"] / matrix["seconds"]
    assert "read ceiling" in done.stdout and "of ceiling" in done.stdout
    assert rows["tiny: 2 layers"]["details"]["launches_per_layer"] == 5


def test_benchmark_says_what_is_wrong(tmp_path):
    done = measure(tmp_path / "result.json", "--model", "none")
    assert done.returncode == 1 and done.stderr == "Error: no model is called none\n"
    missing = environment() | {DRIVER_VARIABLE: "libno_such_driver.so"}
    done = subprocess.run([sys.executable, HERE.parents[1] / "scripts" / "gpu_check.py", "--no-check"], env=missing,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Error: no NVIDIA driver: libno_such_driver.so" in done.stderr
