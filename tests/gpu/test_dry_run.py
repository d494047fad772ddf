"""The gpu lane itself, where there is no GPU: its tests run over the driver made for tests, on fibers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from library_harness import DRIVER_VARIABLE, built_driver, built_library

from edge_awq.plugins import OVERRIDE
from gpu_check import SMALL
from gpu_sanitize import TOOLS, sanitize

HERE = Path(__file__).resolve().parent
SANITIZER = """#!/bin/sh
echo "$@" >> "$0.calls"
case "$2" in
    memcheck) echo "========= ERROR SUMMARY: 0 errors" ;;
    racecheck) echo "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)"; exit 86 ;;
    initcheck) sleep 60 ;;
    synccheck) echo "Target application returned an error"; exit 3 ;;
esac
"""


def environment():
    """That of a machine whose driver is the one made for tests."""
    return os.environ | {DRIVER_VARIABLE: str(built_driver()), OVERRIDE: str(built_library()),
                         "EDGE_AWQ_REQUIRE": "gpu"}


def test_kernel_tests_run():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "test_kernels.py", "-k", SMALL]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " skipped" not in done.stdout


def measure(output, *options, path=None):
    command = [sys.executable, HERE.parents[1] / "scripts" / "gpu_check.py", "--no-check", "--tiny", "--repeats", "2",
               "-o", output, *options]
    found = {"COLUMNS": "200", "PATH": os.environ["PATH"] if path is None else f"{path}:{os.environ['PATH']}"}
    return subprocess.run(command, env=environment() | found, capture_output=True, text=True, check=False)


@pytest.fixture
def sanitizer(tmp_path):
    """A compute-sanitizer that runs nothing: each tool ends in another way."""
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    return tool


def test_sanitizers_are_taken_at_their_word(sanitizer, monkeypatch):
    monkeypatch.setenv("PATH", f"{sanitizer.parent}:{os.environ['PATH']}")
    findings = {each.tool: each for each in sanitize(["python", "-k", SMALL], dict(os.environ), seconds=2)}
    assert [(tool, each.status, each.note) for tool, each in findings.items()] == [
        ("memcheck", "clean", "ERROR SUMMARY: 0 errors"),
        ("racecheck", "errors", "RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)"),
        ("initcheck", "unfinished", "stopped after 2 s"),
        ("synccheck", "failed", "exit status 3: Target application returned an error")]
    assert 2 <= findings["initcheck"].seconds < 50
    calls = sanitizer.with_name("compute-sanitizer.calls").read_text().splitlines()
    assert calls == [f"--tool {tool} --error-exitcode 86 --target-processes all python -k {SMALL}" for tool in TOOLS]
    sanitizer.write_text("#!/bin/sh\n")  # says nothing, so it has checked nothing
    assert {each.status for each in sanitize(["python"], dict(os.environ), seconds=2)} == {"failed"}


def test_no_sanitizer_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("gpu_sanitize.TOOLKIT", str(tmp_path))
    assert {(each.status, each.note) for each in sanitize(["python"], {}, seconds=2)} == {
        ("skipped", f"no compute-sanitizer on the PATH or in {tmp_path}")}


def test_benchmark_runs(tmp_path, sanitizer):
    output = tmp_path / "result" / "result.json"
    output.parent.mkdir()
    done = measure(output, "--sanitize", "1", path=sanitizer.parent)
    assert done.returncode == 1 and done.stderr == "Error: compute-sanitizer is not content\n"
    result = json.loads(output.read_text())
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]
    statuses = ["clean", "errors", "unfinished", "failed"]
    assert [each["status"] for each in result["compute_sanitizer"]] == statuses
    assert all(status in done.stdout for status in statuses) and "test_kernels.py" in sanitizer.with_name(
        "compute-sanitizer.calls").read_text()
    assert result["device"]["name"] == "fake" and result["device"]["compute_capability"] == 8.7
    rows = {row["name"]: row for row in result["rows"]}
    assert {"read ceiling", "int4 256x128 g64 M=1", "int4 128x192 g64 M=1", "int4 100x128 g64 M=1",
            "attention 2:1x64 past=40", "attention 2:1x64 past=40 kv8", "attention 2:1x64 past=0 M=9",
            "tiny: 2 matrices", "tiny: 2 layers",
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
    done = measure(tmp_path / "result.json", "--model", "none", "--sanitize", "0")
    assert done.returncode == 1 and done.stderr == "Error: no model is called none\n"
    missing = environment() | {DRIVER_VARIABLE: "libno_such_driver.so"}
    done = subprocess.run([sys.executable, HERE.parents[1] / "scripts" / "gpu_check.py", "--no-check"], env=missing,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Error: no NVIDIA driver: libno_such_driver.so" in done.stderr
