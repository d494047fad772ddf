"""Plugin-free engines, built by the real TensorRT-RTX without a GPU; and builders that fail, played by small modules.

TensorRT-RTX comes from the package index (95 MB). Its engines are built here and not run: that needs a GPU.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import onnx
import pytest
from built import build, canonical
from onnx import TensorProto, helper

from edge_awq.engine.standard.build import EngineReport, Profile, build_engine
from edge_awq.engine.standard.lower import lower
from edge_awq.engine.standard.options import OPSET, StandardOptions
from edge_awq.engine.standard.runtimes import RUNTIMES
from edge_awq.engine.standard.write import write
from edge_awq.engine.trt.build_progress import UNITS
from edge_awq.errors import EdgeAwqError
from tiny import ARCHITECTURES, UNGROUPED
from wheels import PYTHON, RTX_PACKAGES, RTX_VERSION, unpacked

CONTEXT, PROFILES = 64, (Profile(1, 8, 8), Profile(16, 16, 1))
RTX = RUNTIMES[0]
CAPPED = ("gemma2",)  # their attention is written out


@pytest.fixture
def rtx(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(unpacked(f"rtx-{RTX_VERSION}-{PYTHON}", RTX_PACKAGES, "95 MB")))


def engine_of(folder: Path, architecture: str, activations: str = "float16", **changes: int) -> EngineReport:
    bits = 16 if architecture in UNGROUPED else 4
    build(folder, architecture, bits, min(2 * bits, 16), symmetric=True, **changes)
    weights, options = folder / "weights.safetensors", StandardOptions(CONTEXT, activations)
    graph = write(lower(canonical(folder), weights, options), weights, folder / "standard")
    heard = []
    report = build_engine(graph, folder / "engine", PROFILES, RTX, heard.append)
    assert 0 < sum(heard) <= UNITS
    assert (folder / "engine").stat().st_size == report.engine_bytes
    return report


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_family_builds(architecture, rtx, tmp_path):
    report = engine_of(tmp_path, architecture)
    print(f"{architecture}: {report.engine_bytes} bytes in {report.build_s:.2f} s")  # shown by pytest -rP
    caches = len(canonical(tmp_path).graph.output) - 1
    assert report.runtime_version == RTX_VERSION
    assert report.layers["KV_CACHE_UPDATE"] == caches
    assert report.layers.get("ATTENTION_OUTPUT", 0) == (0 if architecture in CAPPED else caches // 2)


def test_bfloat16_builds(rtx, tmp_path):
    report = engine_of(tmp_path, "llama3", "bfloat16")
    assert report.layers["KV_CACHE_UPDATE"] == 4 and report.layers["ATTENTION_OUTPUT"] == 2


def test_attention_in_float32_is_refused_in_its_own_words(rtx, tmp_path):
    """float32 is for proofs on the CPU."""
    with pytest.raises(EdgeAwqError, match="Attention operation was not supported by a dedicated kernel") as caught:
        engine_of(tmp_path, "llama3", "float32")
    assert caught.value.hint and not (tmp_path / "engine").exists()


def test_weights_stay_4_bits_wide(rtx, tmp_path):
    """A wider MLP adds half a byte and, for a group of 64, a scale of 2 bytes per weight; 2 bytes if unpacked."""
    narrow = engine_of(tmp_path / "narrow", "llama3")
    wide = engine_of(tmp_path / "wide", "llama3", intermediate_size=4352)
    added = 2 * 3 * 128 * (4352 - 256)  # layers, matrices, hidden size, features
    stored = added * (0.5 + 2 / 64)
    assert stored <= wide.engine_bytes - narrow.engine_bytes < 1.1 * stored


def test_a_graph_that_it_does_not_know_is_refused_in_its_own_words(rtx, tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
             (("x", [2, 2]), ("y", []))]
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"], "determinant")], "unknown", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]), tmp_path / "unknown.onnx")
    with pytest.raises(EdgeAwqError, match="cannot read it: Det determinant: ") as caught:
        build_engine(tmp_path / "unknown.onnx", tmp_path / "engine", PROFILES, RTX)
    assert caught.value.hint and not (tmp_path / "engine").exists()


# What stands for the runtime's module -> words of the error.
FAILING = {
    "aborts": ("import os\nos.abort()", "ended by SIGABRT"),
    "crashes": ("raise RuntimeError('no driver')", "exit code 1 while it built: RuntimeError: no driver"),
    "old": ("__version__ = '1.4.0.76'", "TensorRT-RTX 1.4.0.76 has no engines without plugins, 1.7 to 1.x have"),
    "missing": ("raise ModuleNotFoundError(name='tensorrt_rtx_bindings')", "TensorRT-RTX is not installed"),
    "unloadable": ("raise ImportError('libcuda.so.1: not there')", "TensorRT-RTX cannot be loaded: libcuda.so.1"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_builder_that_fails_is_one_error(case, tmp_path, monkeypatch):
    source, words = FAILING[case]
    (tmp_path / "tensorrt_rtx_bindings.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(EdgeAwqError, match=words) as caught:
        build_engine(tmp_path / "graph.onnx", tmp_path / "engine", PROFILES, RTX)
    assert caught.value.hint and not (tmp_path / "engine").exists()


def test_ctrl_c_ends_the_builder_too(tmp_path, monkeypatch):
    """It would sleep for an hour."""
    source = """import time
print('{"advance": 7}', flush=True)
time.sleep(3600)"""
    (tmp_path / "tensorrt_rtx_bindings.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def press(units):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(tmp_path / "graph.onnx", tmp_path / "engine", PROFILES, RTX, press)


def test_an_unknown_runtime_is_refused(tmp_path):
    with pytest.raises(EdgeAwqError, match="'openvino'"):
        build_engine(tmp_path / "graph.onnx", tmp_path / "engine", PROFILES, dataclasses.replace(RTX, name="openvino"))
