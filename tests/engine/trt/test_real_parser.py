"""Lowered graphs in the real ONNX parser of TensorRT 8.6, with the real registry and our plugins in it; needs no GPU.

The builder does not start without one, so recording_network.cpp is the network that the parser fills. 8.6.0 is 800 MB
and its headers are not ours, so nothing fetches them: $EDGE_AWQ_TENSORRT_8 names a folder that holds the package
`tensorrt`, and $EDGE_AWQ_TENSORRT_8_INCLUDE one with NvInfer.h and NvOnnxParser.h of the very same version: between
8.6.0 and 8.6.1 functions of the registry changed places.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

import onnx
import pytest
from lowered import ARCHITECTURES, build_tiny, builds, built_library, canonical, graph_of_shape, plugins

from edge_awq.engine.trt.draft import LoweringOptions
from edge_awq.engine.trt.lower import lower

HERE = Path(__file__).resolve().parent
FOLDER_8, HEADERS_8 = "EDGE_AWQ_TENSORRT_8", "EDGE_AWQ_TENSORRT_8_INCLUDE"
pytestmark = pytest.mark.skipif(not {FOLDER_8, HEADERS_8} <= set(os.environ),
                                reason=f"no TensorRT 8.6: {FOLDER_8} and {HEADERS_8} are not both set")

PASSES = {"decode": {"choose": True}, "prefill": {"most_rows": 128, "last_logits": True},
          "inside": {"choose": True, "weights_inside": True}}
SHAPES = ("llama-2-7b", "llama-2-13b", "mpt-7b", "mpt-30b", "falcon-7b")
CUDA_TYPES = "#pragma once\ntypedef struct CUstream_st* cudaStream_t;\ntypedef struct CUevent_st* cudaEvent_t;\n"
CONSTANT = "layer 19 "
TYPES = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 1, onnx.TensorProto.INT8: 2, onnx.TensorProto.INT32: 3}


@functools.cache
def recorder() -> Path:
    """recording_network.cpp, compiled."""
    program = Path(builds().name) / "recording_network"
    types = program.parent / "cuda_types"
    types.mkdir()
    (types / "cuda_runtime_api.h").write_text(CUDA_TYPES)
    subprocess.run(["g++", "-std=c++17", "-O0", "-w", "-isystem", os.environ[HEADERS_8], "-idirafter", types,
                    HERE / "recording_network.cpp", "-o", program, "-ldl"], check=True)
    return program


def parse(model: onnx.ModelProto, beside: Path, where: Path) -> list[str]:
    """What the parser made of a model, a line each."""
    tensorrt = Path(os.environ[FOLDER_8]) / "tensorrt"
    file = where / "lowered.onnx"
    file.write_bytes(model.SerializeToString())
    done = subprocess.run([recorder(), tensorrt, built_library(), file, beside], capture_output=True, text=True,
                          check=False, env=os.environ | {"LD_LIBRARY_PATH": str(tensorrt)})
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout.splitlines()


def described(value: onnx.ValueInfoProto) -> str:
    """As recording_network prints a tensor."""
    kind = value.type.tensor_type
    dims = ",".join(str(dim.dim_value) if dim.HasField("dim_value") else "-1" for dim in kind.shape.dim)
    return f"{value.name} {TYPES[kind.elem_type]} [{dims}]"


def check(model: onnx.ModelProto, lines: list[str]) -> None:
    """All inputs and outputs are there with their types and shapes, and so is every plugin."""
    graph = model.graph
    assert [line.removeprefix("input ") for line in lines if line.startswith("input ")] == [
        described(value) for value in graph.input]
    outputs = {line.split()[1]: line.removeprefix("output ") for line in lines if line.startswith("output ")}
    assert set(outputs) == {value.name for value in graph.output}
    for value in graph.output:  # what a slice of the newest row leaves is known to the builder, not here
        found, wanted = outputs[value.name], described(value)
        assert found.split(" [")[0] == wanted.split(" [")[0] and found.count(",") == wanted.count(",")
    made = [line.split(":")[0].split(" ")[2:] for line in lines if re.match(r"layer \d+ [A-Z]", line)]
    assert sorted(map(tuple, made)) == sorted((node.op_type, node.name) for node in plugins(model))


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(tmp_path, architecture, name):
    build_tiny(tmp_path, architecture)
    model = lower(canonical(tmp_path), LoweringOptions(tensorrt_major=8, **PASSES[name])).model
    check(model, parse(model, tmp_path / "model.onnx", tmp_path))


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_models(tmp_path, shape):
    """At full size a decode step is at most five launches a layer, and three around them."""
    graph, config = graph_of_shape(shape)
    model = lower(graph, LoweringOptions(tensorrt_major=8, **PASSES["decode"])).model
    lines = parse(model, tmp_path / "model.onnx", tmp_path)
    check(model, lines)
    launches = [line for line in lines if line.startswith("layer ") and not line.startswith(CONSTANT)]
    assert len(launches) <= 5 * config.num_layers + 3, launches


def test_a_plugin_that_refuses_is_an_error(tmp_path):
    graph, _ = graph_of_shape("falcon-7b")
    model = lower(graph, LoweringOptions(tensorrt_major=8)).model
    node = next(node for node in plugins(model) if node.op_type == "Int4MatMul")
    next(attribute for attribute in node.attribute if attribute.name == "K").i = 100
    with pytest.raises(AssertionError, match="K = 100"):
        parse(model, tmp_path / "model.onnx", tmp_path)
