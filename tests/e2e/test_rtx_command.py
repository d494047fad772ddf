"""edge-awq compile --plugin-free with the real TensorRT-RTX, which needs no GPU for it; a GPU would be needed to run.

TensorRT-RTX comes from the package index (95 MB); its module lives in a process of its own, as it may crash at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import command, make_model

from edge_awq.engine.trt.plan_cache import read_engine
from wheels import PYTHON, RTX_PACKAGES, RTX_VERSION, unpacked


def with_rtx(packages: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """One command in a process that finds TensorRT-RTX, and no GPU."""
    command = [sys.executable, "-c", "from edge_awq.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(packages), "CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.parametrize("architecture", ["llama3", "mpt", "falcon"])
def test_engine_by_tensorrt_rtx(architecture, tmp_path):
    packages = unpacked(f"rtx-{RTX_VERSION}-{PYTHON}", RTX_PACKAGES, "95 MB")
    bundle = tmp_path / "b"
    make_model(tmp_path / "model", architecture)
    assert command("build", tmp_path / "model", "--target", "rtx-4090", "-o", bundle, "--recipe", "rtn",
                   "--symmetric").code == 0
    compiled = with_rtx(packages, "compile", bundle, "--plugin-free")
    assert compiled.returncode == 0, compiled.stderr
    assert "decode of up to 8 tokens, prefill of up to" in compiled.stderr
    (file,) = (bundle / "engines").iterdir()
    assert file.name.startswith("tensorrt_rtx-1.7.1-") and str(file) in compiled.stderr
    stored = read_engine(file)
    assert {table["profile"] for table in stored.passes.values()} == {0, 1} and len(stored.plans["engine"]) > 1 << 20
    assert "is there" in with_rtx(packages, "compile", bundle, "--plugin-free").stderr
    assert command("inspect", bundle).code == 0


def test_bundle_with_zero_points(tmp_path):
    model, bundle = tmp_path / "model", tmp_path / "b"
    make_model(model)
    assert command("build", model, "--target", "rtx-4090", "-o", bundle, "--recipe", "rtn").code == 0
    refused = command("compile", bundle, "--plugin-free")
    assert refused.code == 1 and "has zero points" in refused.err and "--symmetric" in refused.err
