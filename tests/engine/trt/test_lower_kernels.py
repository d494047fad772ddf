"""Lowered graphs on the plugin library: every node is one that it creates, and its kernels compute what is meant.

The library is the real one over a driver made for tests, on which the kernels run on the CPU.
"""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import pytest
from lowered import (
    TESTS,
    Device,
    KernelError,
    build_tiny,
    canonical,
    graph_of_shape,
    half_limit,
    plugins,
    random_ids,
    relative_l2,
)
from onnx import helper
from onnx.reference.op_run import OpRun

from edge_awq.engine.trt import names
from edge_awq.engine.trt.draft import LoweringOptions
from edge_awq.engine.trt.lower import lower
from edge_awq.engine.trt.reference import OPS, LoweredReference
from edge_awq.engine.trt.reference_sample import draw
from edge_awq.shapes import shape_names

# The kernels add in float32 and in another order, and round probabilities to float16 besides what the reference
# rounds; where a value is rounded up on one side and down on the other, the two are 2 ** -10 of it apart.
KERNEL_LIMIT = 2.0**-10
HEADERS = TESTS.parent / "plugins"


@pytest.fixture(scope="module")
def device():
    return Device.make()


@pytest.fixture(scope="module", params=[Device.make, Device.make_ptx], ids=["source", "ptx"])
def any_device(request):
    """The kernels' own source on a CPU, and their PTX."""
    return request.param()


def attributes(node):
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute
            if not entry.name.startswith("plugin_")}


def shapes_of(model, tokens, context):
    """Tensor -> shape, with so many tokens in a call and so much room in the cache."""
    sizes = {"tokens": tokens, "context": context}
    values = {value.name: [dim.dim_value or sizes[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)}
    return values | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def activation_shape(node, tokens):
    """The shape of what a plugin reads or gives, where it is no input and no output of the graph."""
    given = attributes(node)
    if node.op_type == names.ATTENTION:
        return [1, tokens, given["num_heads"] * given["head_size"]]
    if node.op_type not in names.MATMUL_WEIGHTS:
        return None
    return [1, tokens, given["N"] // 2 if given.get("gated") else given["N"]]


def complete_shapes(model, tokens, context):
    shapes = shapes_of(model, tokens, context)
    for node in model.graph.node:
        if node.domain == names.DOMAIN:
            shape = activation_shape(node, tokens) or shapes[node.input[0]]
        elif node.op_type == "Gather" and node.output[0] == "embed.rows":
            shape = [1, tokens, shapes[node.input[0]][1]]
        elif node.op_type == "Reshape":
            target = next(onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
                          if tensor.name == node.input[1])
            before = shapes[node.input[0]]
            known = [before[i] if size == 0 else int(size) for i, size in enumerate(target)]
            shape = [math.prod(before) // -math.prod(known) if size == -1 else size for size in known]
        elif node.op_type in ("Add", "Mul", "Cast", "Clip", "Div", "Tanh"):
            shape = max((shapes[name] for name in node.input), key=len)
        else:
            shape = []  # learned positions' numbers, which no plugin reads
        for output in node.output:
            shapes.setdefault(output, shape)
    return shapes


class Described:
    """A tensor of which the library sees the shape alone."""

    def __init__(self, shape):
        self.shape, self.ndim = shape, len(shape)
        self.ctypes = np.zeros(1).ctypes


@pytest.mark.parametrize(("name", "kv_bits"), [
    *((name, 16) for name in shape_names()), ("llama-2-7b", 8), ("mpt-30b", 8), ("falcon-7b", 8), ("gemma-2-2b", 8)])
def test_library_takes_every_node_of_full_sized_models(device, name, kv_bits):
    """Attributes, number of inputs, and all shapes, for a single token and for the most of a call."""
    model, _ = graph_of_shape(name)
    lowered = lower(model, LoweringOptions(choose=True, kv_bits=kv_bits))
    seen = set()
    for tokens in {1, lowered.most_rows}:
        shapes = complete_shapes(lowered.model, tokens, 512)
        for node in plugins(lowered.model):
            inputs = [Described(shapes[name]) for name in node.input]
            key = (node.op_type, str(attributes(node)), str([each.shape for each in inputs]))
            if key in seen:
                continue
            seen.add(key)
            op = device.create(node.op_type, **attributes(node))
            assert op.workspace_bytes(*inputs) >= 0
            op.close()


def byte_limit(error, attentions):
    """How far a cache of bytes takes two graphs apart that are ``error`` from each other, as relative_l2.

    A number that is off by e becomes another byte with a probability of e / scale, and is then off by a scale: e *
    scale in the mean square. A scale is 1/127 of the largest of 64, hardly more than 3/127 of their root mean square.
    Keys and values of all attentions do not know of each other.
    """
    return math.sqrt(2 * attentions * error * 3 / 127)


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("architecture", ["llama3", "mpt-clipped", "gemma2"])
def test_kernels_compute_a_prompt(any_device, architecture, kv_bits, tmp_path, monkeypatch):
    """The graph for prompts: a chunk of more than 8 tokens, a short one, a long one; only the kernels round."""
    build_tiny(tmp_path, architecture)
    lowered = lower(canonical(tmp_path), LoweringOptions(choose=True, most_rows=16, kv_bits=kv_bits))
    weights = tmp_path / "weights.safetensors"
    expected = LoweredReference(lowered, weights, 28, exact=True)
    monkeypatch.setattr("edge_awq.engine.trt.reference.OPS", on_device(any_device))
    found = LoweredReference(lowered, weights, 28)
    nodes = plugins(lowered.model)
    attentions = sum(node.op_type == names.ATTENTION for node in nodes)
    limit = half_limit(lowered.model)
    limit += 0 if kv_bits == 16 else byte_limit(limit, attentions)
    for ids, extra in ((random_ids(13), attentions), (random_ids(2, seed=2), 0), (random_ids(9, seed=3), attentions)):
        any_device.reset()
        kernels, meant = found(ids), expected(ids)
        assert relative_l2(kernels["logits"], meant["logits"]) <= limit
        np.testing.assert_array_equal(kernels["tokens"], kernels["logits"].argmax(-1))
        assert len(any_device.calls("cuLaunchKernel")) == len(nodes) + extra


def test_attributes_are_those_that_creators_list(device):
    listed = {line.split()[0]: set(line.split()[1:]) for line in device.library.edge_awq_ops().decode().splitlines()}
    assert {names.EMBEDDING, names.GREEDY, *(op.__name__ for op in OPS)} == set(listed)
    used = {kind: set() for kind in listed}
    for name in ("llama-2-7b", "falcon-7b", "qwen2.5-0.5b", "gemma-2-2b"):
        for node in plugins(lower(graph_of_shape(name)[0]).model):
            used[node.op_type] |= set(attributes(node))
    assert all(used[kind] <= listed[kind] for kind in listed)
    assert set(names.EXTRAS) == {"norm_weight", *(name.removeprefix("has_") for name in listed["Int4MatMul"]
                                                  if name.startswith("has_"))}


def test_no_plugin_is_called_like_a_standard_op(device):
    """TensorRT's parser dispatches by op type alone and looks for plugins last."""
    for line in device.library.edge_awq_ops().decode().splitlines():
        assert not onnx.defs.has(line.split()[0], "")


def test_limits_are_the_kernels_own():
    shape = (HEADERS / "common" / "gemv_shape.h").read_text()
    numbers = dict(re.findall(r"constexpr int (k\w+) = ([\d* ]+);", shape))
    value = {name: math.prod(int(factor) for factor in text.split("*")) for name, text in numbers.items()}
    assert value["kGemvMaxRows"] == names.NORMED_MOST_ROWS
    assert value["kSharedRowsMaxBytes"] == names.NORMED_MOST_BYTES
    assert value["kSharedRowPitch"] * 16 == names.NORMED_ROW_STEP
    plan = (HEADERS / "attention" / "plan.h").read_text()
    assert tuple(map(int, re.findall(r"\{(\d+), \{\{", plan))) == names.HEAD_SIZES


@pytest.mark.parametrize(("width", "rows"), [(4096, 8), (4544, 7), (5120, 6), (7168, 4), (32768, 1)])
def test_rows_that_fit_in_front_of_a_matmul(device, width, rows):
    assert names.normed_rows(width) == rows
    op = device.create("Fp16MatMul", K=width, N=8, norm=1)
    tensors = [Described([8, width]), Described([width])]
    assert op.workspace_bytes(Described([1, rows, width]), *tensors) >= 0
    with pytest.raises(KernelError, match="launch the norm alone"):
        op.workspace_bytes(Described([1, rows + 1, width]), *tensors)


def on_device(device):
    """The reference's ops, each run by the library's kernels; tensors as the graph has them."""

    def make(kind):
        class OnDevice(OpRun):
            op_domain = names.DOMAIN

            def _run(self, *inputs, **_):
                given = attributes(self.onnx_node)
                inputs = [array.copy() for array in inputs]  # aligned, as device memory is
                outputs = outputs_of(self.onnx_node, given, inputs)
                op = device.create(kind, **given)
                op.run(inputs, outputs)
                op.close()
                return tuple(outputs)

        OnDevice.__name__ = kind
        return OnDevice

    return [make(op.__name__) for op in OPS]


def outputs_of(node, given, inputs):
    if node.op_type == names.SAMPLE:
        return [np.full(inputs[0].shape[:-1], -1)]
    if node.op_type in names.NORMS:
        return [np.full_like(inputs[0], np.nan)]
    dtype = np.float32 if given.get("fp32_output") else np.float16
    y = np.full(activation_shape(node, inputs[0].shape[1]), np.nan, dtype)
    caches = [array for array, name in zip(inputs, node.input, strict=True) if name.startswith("past_")]
    return [y, *caches[:-1]] if node.op_type == names.ATTENTION else [y]


# What runs where there are slopes or a soft-cap; all others are spared both.
ADJUSTED = dict.fromkeys(("mpt-clipped", "gemma2"), "decode_attention_64_adjusted")


@pytest.mark.parametrize("architecture", ["llama3", "qwen2", "mpt-clipped", "falcon", "qwen3", "opt", "gemma2"])
def test_kernels_compute_the_lowered_graph(any_device, architecture, tmp_path, monkeypatch):
    """A chunk and a token, as the reference with its roundings computes them; the tokens too, greedy, then drawn."""
    build_tiny(tmp_path, architecture)
    lowered = lower(canonical(tmp_path), LoweringOptions(choose=True))
    weights = tmp_path / "weights.safetensors"
    expected = LoweredReference(lowered, weights, 12)
    monkeypatch.setattr("edge_awq.engine.trt.reference.OPS", on_device(any_device))
    found = LoweredReference(lowered, weights, 12)
    any_device.reset()
    found.seed = 2**63 + 5
    for ids, settings in ((random_ids(3), [0, 0, 0, 0]), (random_ids(1, seed=2), [1.5, 20, 0.9, 0])):
        found.settings[:] = settings
        first = found.length
        kernels, meant = found(ids), expected(ids)
        assert relative_l2(kernels["logits"], meant["logits"]) <= KERNEL_LIMIT
        for row, (logits, token) in enumerate(zip(kernels["logits"][0], kernels["tokens"][0], strict=True)):
            assert token == draw(logits, found.settings, found.seed, first + row)
    launches = [line.split()[0] for line in any_device.calls("cuLaunchKernel")]
    assert len(launches) == 2 * len(plugins(lowered.model))
    kernels = {name for name in launches if "attention" in name}
    assert kernels == {ADJUSTED.get(architecture, "decode_attention_64")}
