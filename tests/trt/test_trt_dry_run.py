"""The trt lane itself, where there is no TensorRT and no GPU: over stand-ins for them, our code for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
MACHINE = HERE.parent / "engine" / "trt" / "machine"
sys.path.insert(0, str(HERE.parent / "plugins"))

from library_harness import built_library, folder, named_driver  # noqa: E402

from edge_awq.plugins import OVERRIDE  # noqa: E402


def environment(version="8.6.0", **changes):
    """That of a machine with TensorRT ``version``, pycuda and a driver, of which only our own code is real."""
    paths = [str(MACHINE), str(TOP)]
    return os.environ | {"LD_LIBRARY_PATH": str(named_driver().parent), "PYTHONPATH": os.pathsep.join(paths),
                         OVERRIDE: str(built_library()), "EDGE_AWQ_FAKE_TENSORRT": version, "COLUMNS": "200", **changes}


def run(arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(("version", "models"), [("8.6.0", "llama-w4a16 or mpt-fp16"),
                                                 ("11.4.0", "falcon-w4a16 and (compile or several)")])
def test_lane_passes(version, models):
    """Engines that compute what was lowered, with the kernels' roundings, pass; nothing is skipped."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "test_engines.py", "-k", models]
    done = run(command, env=environment(version, EDGE_AWQ_REQUIRE="gpu,trt"), cwd=TOP)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " skipped" not in done.stdout


@pytest.mark.parametrize("wrong", ["scale", "past", "token"])
def test_lane_fails_where_an_engine_is_wrong(wrong):
    """A rounding too many is let pass; a logit's worth of error, a lost row of the cache and another token are not."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "test_engines.py", "-k",
               "mpt-fp16 and (every_step or greedy)"]
    done = run(command, env=environment(EDGE_AWQ_FAKE_FAULT=wrong), cwd=TOP)
    assert done.returncode == 1 and "FAILED" in done.stdout, done.stdout[-3000:]


def test_missing_things_skip_or_fail():
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "test_engines.py", "-k", "mpt-fp16"]
    bare = {name: value for name, value in environment().items() if name != "LD_LIBRARY_PATH"}
    done = run([*command, "-rs"], env=bare, cwd=TOP)
    assert done.returncode == 0 and "NVIDIA's driver is not there" in done.stdout
    done = run(command, env=bare | {"EDGE_AWQ_REQUIRE": "gpu,trt"}, cwd=TOP)
    assert done.returncode == 1 and "NVIDIA's driver is not there" in done.stdout


def test_benchmark_runs_and_goes_on(tmp_path):
    output = tmp_path / "result.json"
    command = [TOP / "scripts" / "trt_check.py", "--no-check", "--tiny", "--repeats", "2", "-o", output, "--work",
               tmp_path / "work", "--peer-python", "no-such-python"]
    done = run(command, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(output.read_text())
    rows = {(row["precision"], row["engine"]): row for row in result["rows"]}
    assert result["tensorrt"] == "8.6.0" and result["device"]["name"] == "fake"
    for precision in ("w4a16", "fp16"):
        row = rows[precision, "edge-awq"]
        assert row["tok_s"] > 0 and row["compiled"]["passes"] == {"decode": 8, "prefill": 512}
        assert row["details"]["result"]["generated_tokens"] == 200
    assert rows["w4a16", "edge-awq"]["weight_bytes"] < rows["fp16", "edge-awq"]["weight_bytes"] / 3
    assert rows["fp16", "transformers"]["tok_s"] is None and "no-such-python" in rows["fp16", "transformers"]["note"]
    assert not list((tmp_path / "work").iterdir()) and "of the roof" in done.stdout
    done = run(command, env=environment())
    assert done.returncode == 0 and "tiny w4a16" not in done.stdout.split("tok/s")[0]
    assert json.loads(output.read_text())["rows"][:2] == result["rows"][:2]


def test_benchmark_says_what_is_wrong(tmp_path):
    command = [TOP / "scripts" / "trt_check.py", "--no-check", "-o", tmp_path / "result.json"]
    done = run([*command, "--model", "none"], env=environment())
    assert done.returncode == 1 and done.stderr.startswith("Error: shape 'none' is not known\nHint: known:")
    bare = {name: value for name, value in environment().items() if name != "LD_LIBRARY_PATH"}
    done = run(command, env=bare)
    assert done.returncode == 1 and done.stderr.startswith("Error: NVIDIA's driver finds no GPU\n")
    assert not list(tmp_path.iterdir())


def test_peer_without_torch_is_a_note():
    done = run(["-S", TOP / "scripts" / "trt_peers.py", "{}", "4", "199", "1"], env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0 and json.loads(done.stdout)["note"].startswith("not installed: ")


def test_driver_lies_where_it_is_looked_for():
    assert named_driver().name == "libcuda.so.1" and Path(folder().name) in named_driver().parents
