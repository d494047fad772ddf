"""Each lowering rule for TensorRT: the graph means the same without it, it says why it declines, and what is refused.

The oracle is the canonical graph, run by onnxruntime as it stands.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from lowered import CHUNKS, build_tiny, canonical, graph_of_shape, plugins, relative_l2, run_graph, run_lowered
from onnx import helper

from edge_awq.engine.trt.lower import LoweringOptions, lower
from edge_awq.engine.trt.rules import RULES
from edge_awq.engine.trt.weight_input import WeightInput, load
from edge_awq.errors import EdgeAwqError
from edge_awq.weights import read_layout
from stored import write_weights

FLOAT_LIMIT = 1e-5  # the canonical graph computes in float32


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """architecture -> (folder, logits of the canonical graph), made when first asked for."""
    made = {}

    def get(architecture):
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            decoder = build_tiny(folder, architecture)
            made[architecture] = folder, run_graph(canonical(folder), folder, decoder, CHUNKS)
        return made[architecture]

    return get


def name_of(rule):
    return rule.__module__.rpartition(".")[2]


def without(*names):
    assert set(names) <= {name_of(rule) for rule in RULES}
    return [rule for rule in RULES if name_of(rule) not in names]


# (rule, architecture, nodes of plugins and of standard ops, casts too, that it saves in two layers)
SAVES = [
    ("bias", "llama-biased", 6, 51),  # with a sum in between, nothing else is absorbed either
    ("activation", "llama3", 2, 12),
    ("gate", "llama3", 2, 8),
    ("act_scale", "mpt", 0, 6),
    ("qkv", "llama3", 4, 0),
    ("qkv", "mpt-clipped", 4, 12),
    ("residual", "llama3", 0, 13),
    ("norm_prologue", "llama3", 5, 0),
    ("norm_prologue", "falcon", 3, 0),  # attention and MLP share one
]


@pytest.mark.parametrize(("rule", "architecture", "own", "rest"), SAVES)
def test_graph_means_the_same_without_a_rule(models, rule, architecture, own, rest):
    folder, expected = models(architecture)
    less, whole = lower(canonical(folder), rules=without(rule)), lower(canonical(folder))
    assert relative_l2(run_lowered(less, folder, exact=True), expected) <= FLOAT_LIMIT
    run_lowered(less, folder)  # every plugin is given the types that it takes
    counts = [(len(plugins(each.model)), len(each.model.graph.node)) for each in (less, whole)]
    assert counts[0] == (counts[1][0] + own, counts[1][1] + own + rest)


def test_norms_of_many_rows_are_launched_alone(models):
    """A prompt's graph: norms in plugins of their own, everything else as for a token."""
    folder, expected = models("llama3")
    lowered = lower(canonical(folder), LoweringOptions(most_rows=512))
    assert lowered.most_rows == 512 and len(lowered.declined) == 5
    assert lowered.declined[0] == ("norm_prologue: blocks.0.attn_norm: 512 rows of 128 elements are too many in front "
                                   "of a matmul, 8 fit")
    assert [node.op_type for node in plugins(lowered.model)].count("RmsNorm") == 5
    assert set(lowered.weights) == set(lower(canonical(folder)).weights)  # uploaded once, for both
    assert relative_l2(run_lowered(lowered, folder, exact=True), expected) <= FLOAT_LIMIT


# Edits of the canonical graph.
def node_named(model, name):
    return next(node for node in model.graph.node if node.name == name)


def drop_bias(model, name):
    """Whoever read the sum reads the matmul."""
    add = node_named(model, f"{name}.biased")
    for node in model.graph.node:
        node.input[:] = [add.input[0] if tensor == add.output[0] else tensor for tensor in node.input]
    model.graph.node.remove(add)


def other_bound(model, name):
    model.graph.initializer.append(helper.make_tensor("clip.other", onnx.TensorProto.FLOAT, [], [0.1]))
    node_named(model, name).input[2] = "clip.other"


def read_again(model, name):
    """One more reader: an output of the graph."""
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, None))


def activate_twice(model, name):
    """relu(silu(z)) where silu(z) was."""
    silu = node_named(model, name)
    silu.output[0] = f"{name}.first"
    model.graph.node.append(helper.make_node("Relu", [f"{name}.first"], [name], f"{name}.second"))
    nodes = list(model.graph.node)
    nodes.insert(nodes.index(silu) + 1, nodes.pop())
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def set_bias(model, name):
    """The add gets the bias of another linear, of another size."""
    node_named(model, f"{name}.biased").input[1] = "blocks.0.up.bias"


# (architecture, edit, its argument, what is declined); the graph still means what the edited one does.
DECLINES = [
    ("llama-biased", drop_bias, "blocks.1.k", "qkv: blocks.1.attention: some of blocks.1.q, blocks.1.k, blocks.1.v "
                                              "have a bias, some have none"),
    ("llama-biased", drop_bias, "blocks.0.up", "gate: blocks.0.gated: some of blocks.0.gate, blocks.0.up have a bias, "
                                               "some have none"),
    ("mpt-clipped", other_bound, "blocks.1.k_clipped", "qkv: blocks.1.attention: q, k and v have different bounds"),
    ("llama3", read_again, "blocks.1.k", "qkv: blocks.1.attention: 'blocks.1.k' has other readers"),
    ("llama3", read_again, "blocks.0.up", "gate: blocks.0.gated: a factor has other readers"),
    ("llama3", read_again, "blocks.0.down", "residual: blocks.0.mlp_residual: neither term is what a matmul alone "
                                            "gives"),
]


@pytest.mark.parametrize(("architecture", "edit", "name", "reason"), DECLINES,
                         ids=lambda value: value.__name__ if callable(value) else value)
def test_rules_decline_with_a_reason(models, architecture, edit, name, reason):
    folder, _ = models(architecture)
    model = canonical(folder)
    edit(model, name)
    lowered = lower(model)
    assert lowered.declined == (reason,)
    decoder_outputs = run_lowered(lowered, folder, exact=True)
    plain = lower(model, rules=without("qkv", "gate", "residual", "norm_prologue"))
    assert relative_l2(decoder_outputs, run_lowered(plain, folder, exact=True)) <= 1e-12  # float64 on both sides


def test_a_second_activation_is_not_absorbed():
    model, _ = graph_of_shape("llama-160m")
    activate_twice(model, "blocks.0.activation")
    with pytest.raises(EdgeAwqError, match=r"knows no Relu \(activation: .*blocks.0.gate is more than a product"):
        lower(model)


def test_a_scale_of_another_shape_is_none(models):
    folder, _ = models("mpt")
    model = canonical(folder)
    node_named(model, "blocks.0.scaled").input[1] = "final_norm.weight"
    assert lower(model).declined == ("act_scale: blocks.0.scaled: 'final_norm.weight' has shape [128], not [512]",)


def test_bias_of_another_shape_is_no_bias(models):
    folder, _ = models("llama-biased")
    model = canonical(folder)
    set_bias(model, "blocks.0.o")
    declined = lower(model).declined
    assert "bias: blocks.0.o.biased: 'blocks.0.up.bias' has shape [256], not [128]" in declined


def slopes_as_input(model):
    slopes = next(tensor for tensor in model.graph.initializer if tensor.name == "alibi.slopes")
    model.graph.initializer.remove(slopes)
    model.graph.input.append(helper.make_tensor_value_info(slopes.name, slopes.data_type, slopes.dims))


@pytest.mark.parametrize(("edit", "has_slopes"), [(lambda model: None, 0), (slopes_as_input, 1)],
                         ids=["zeros", "not-known"])
def test_slopes_are_left_out_where_they_are_known_to_be_zeros(edit, has_slopes):
    model, _ = graph_of_shape("llama-160m")
    edit(model)
    nodes = [node for node in plugins(lower(model).model) if node.op_type == "CachedAttention"]
    assert nodes and all(("alibi.slopes" in node.input) == bool(has_slopes) for node in nodes)
    assert all([entry.i for entry in node.attribute if entry.name == "has_slopes"] == [has_slopes] for node in nodes)


# (shape, attribute of which nodes, value, error)
REFUSED = [
    ("group_size", "blocks.0.down", 32, "blocks.0.down: no kernel has group size 32"),
    ("K", "blocks.0.down", 96, "blocks.0.down: K = 96 is no multiple of 64"),
    ("head_size", "blocks.1.attention", 72, "blocks.1.attention: no kernel has head size 72, only 64, 80"),
]


@pytest.mark.parametrize(("attribute", "node", "value", "text"), REFUSED)
def test_what_no_kernel_computes_is_refused(attribute, node, value, text):
    model, _ = graph_of_shape("llama-160m")
    next(entry for entry in node_named(model, node).attribute if entry.name == attribute).i = value
    with pytest.raises(EdgeAwqError, match=re.escape(text)) as error:
        lower(model)
    assert error.value.hint


@pytest.mark.parametrize("version", [1, 3, None])
def test_graphs_of_another_contract_are_refused(version):
    model, _ = graph_of_shape("llama-160m")
    opset = next(opset for opset in model.opset_import if opset.domain == "edge_awq")
    if version is None:  # not ours at all
        model.opset_import.remove(opset)
    else:
        opset.version = version
    with pytest.raises(EdgeAwqError, match=f"the graph has op contract version {version}, this edge-awq has 2"):
        lower(model)


def test_ops_that_tensorrt_does_not_know_are_refused(models):
    folder, _ = models("mpt")
    with pytest.raises(EdgeAwqError, match=r"blocks\.0\.activation: TensorRT 8\.6 knows no Gelu"):
        lower(canonical(folder), rules=without("activation"))


def test_a_forgotten_cast_is_an_error_of_the_reference(models):
    folder, _ = models("gemma2")
    with pytest.raises(EdgeAwqError, match="input 0 is float32, not float16"):
        run_lowered(lower(canonical(folder), rules=without("seams")), folder)


def test_weights_inside_must_be_neighbours(models):
    folder, _ = models("llama3")
    model = canonical(folder)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "blocks.1.k.scales")
    next(entry for entry in tensor.external_data if entry.key == "offset").value = "64"
    with pytest.raises(EdgeAwqError, match=r"blocks\.1\.v\.scales are no neighbours in weights\.safetensors"):
        lower(model, LoweringOptions(weights_inside=True))


def test_loading_stacks_and_converts(tmp_path):
    rng = np.random.default_rng(0)
    stored = {"a": rng.standard_normal((2, 3)).astype(np.float32), "b": rng.standard_normal((4, 3)).astype(np.float32),
              "q": rng.integers(0, 256, (2, 4)).astype(np.uint8)}
    path = tmp_path / "weights.safetensors"
    write_weights(path, stored)
    layout = read_layout(path)
    whole = load(WeightInput("ab", "float16", (6, 3), ("a", "b")), path, layout)
    np.testing.assert_array_equal(whole, np.concatenate([stored["a"], stored["b"]]).astype(np.float16))
    packed = load(WeightInput("q", "int8", (2, 4), ("q",)), path, layout)
    assert packed.dtype == np.int8 and packed.tobytes() == stored["q"].tobytes()
    assert isinstance(packed, np.memmap)  # no copy
