"""Blocks on Ray's workers: the same bits as in one process, also when a worker is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models import make_model

from edge_awq.errors import EdgeAwqError
from edge_awq.quantize.workers import check_workers

NEEDS_RAY = "Ray is not installed: pip install 'edge-awq[ray]'"
RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason=NEEDS_RAY)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # so that two workers fit on two cores


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Six blocks, long enough in work for a worker to be caught."""
    folder = tmp_path_factory.mktemp("workers") / "model"
    make_model(folder, num_hidden_layers=6)
    return folder


def build(model: Path, output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "edge_awq", "build", model, "-o", output, *options]
    return subprocess.Popen(list(map(str, command)), env=ONE_THREAD, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def serial(model):
    process = build(model, model.parent / "serial.bundle")
    assert process.wait() == 0, process.stderr.read()
    return (model.parent / "serial.bundle" / "weights.safetensors").read_bytes()


def workers_of(pid: int) -> list[int]:
    """Processes of Ray that quantize a block, among the descendants of ``pid``."""
    parents, names = {}, {}
    for status in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(status.name)] = int((status / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(status.name)] = (status / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile

    def descends(child: int) -> bool:
        while child in parents:
            child = parents[child]
            if child == pid:
                return True
        return False

    return [each for each, name in names.items() if name.startswith("ray::") and "block" in name and descends(each)]


@RAY
@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "a worker is killed"])
def test_the_bits_are_those_of_one_process(model, serial, tmp_path, kill):
    process = build(model, tmp_path / "out.bundle", "--workers", "ray")
    killed = 0
    while kill and not killed and process.poll() is None:
        for worker in workers_of(process.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
            killed += 1
        time.sleep(0.01)
    assert process.wait() == 0, process.stderr.read()
    assert killed == int(kill)
    assert (tmp_path / "out.bundle" / "weights.safetensors").read_bytes() == serial


@RAY
def test_recipe_best_has_the_bits_of_one_process(tmp_path):
    make_model(tmp_path / "model", num_hidden_layers=2)
    weights = []
    for name, options in (("serial", ()), ("ray", ("--workers", "ray"))):
        process = build(tmp_path / "model", tmp_path / f"{name}.bundle", "--recipe", "best", *options)
        assert process.wait() == 0, process.stderr.read()
        weights.append((tmp_path / f"{name}.bundle" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


@RAY
def test_no_cluster_answers(model, tmp_path):
    process = build(model, tmp_path / "out.bundle", "--workers", "ray://127.0.0.1:1")
    error = process.communicate()[1]
    assert process.returncode == 1 and "ray://127.0.0.1:1 cannot be used" in error and "Traceback" not in error


def test_unknown_workers():
    with pytest.raises(EdgeAwqError, match="workers 'dask' are not known"):
        check_workers("dask")


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EdgeAwqError, match="'ray', which is not installed") as caught:
        check_workers("ray")
    assert "edge-awq[ray]" in caught.value.hint
