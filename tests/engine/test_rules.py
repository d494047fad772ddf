"""Each lowering rule: it fires, it says why it declines, and the graph computes what it did before.

The oracle is the canonical graph, run by onnxruntime as it stands.
"""

from __future__ import annotations

import math
import re

import onnx
import pytest
from built import build, canonical, random_ids, relative_l2, run_graph
from onnx import helper

from edge_awq.engine.ort.accuracy import set_levels
from edge_awq.engine.ort.lower import lower
from edge_awq.engine.ort.rules import RULES, split_head
from edge_awq.engine.ort.rules.matmul_nbits import KERNEL

FLOAT_LIMIT = 1e-5  # float32 on both sides, in another order
# int8 activations round a group of 64 to 127 steps of its largest value, which moves it by at most sqrt(64 / 12) / 127
# = 1.8 % of its length; the two blocks have 8 matmuls one after the other and the head is one, with errors that do not
# know of each other: sqrt(9) * 1.8 %.
INT8_LIMIT = 0.055
CHUNKS = [random_ids(14), random_ids(1, seed=2), random_ids(1, seed=3), random_ids(7, seed=4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """architecture -> (folder, decoder, logits of the canonical graph), made when first asked for."""
    made = {}

    def get(architecture):
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            decoder = build(folder, architecture)
            made[architecture] = folder, decoder, run_graph(canonical(folder), folder, decoder, CHUNKS)
        return made[architecture]

    return get


def named(*names):
    return [rule for rule in RULES if rule.name in names]


def kernels(model):
    return [node.name for node in model.graph.node if node.op_type == KERNEL]


ALL = tuple(rule.name for rule in RULES)
# (architecture, rules that are applied, how often each fires). The architectures have 2 blocks of 7 linears, or of 6.
FIRE = [
    ("llama3", ("embedding",), [1]),
    ("llama3", ("merge_linears",), [4]),
    ("llama3", ("matmul_nbits",), [15]),
    ("llama3", ("attention",), [2]),
    ("llama3", ("skip_norm",), [3]),
    ("llama3", ("split_head",), [1]),
    ("mistral", ("merge_linears", "attention"), [4, 2]),
    ("llama-biased", ("merge_linears", "matmul_nbits"), [4, 9]),
    ("llama-biased", ("matmul_nbits", "fuse_bias"), [15, 14]),
    ("qwen2", ("merge_linears", "matmul_nbits", "fuse_bias"), [4, 9, 2]),
    ("llama-biased", ALL, [1, 4, 1, 13, 8, 2, 3]),
    ("mpt", ALL, [1, 2, 1, 13, 0, 2, 3]),
    ("falcon-biased", ALL, [1, 2, 1, 11, 6, 2, 1]),  # q, k, v and up are one matmul
    ("opt", ALL, [1, 2, 1, 13, 8, 2, 4]),  # the sum of tokens and positions too
    ("gemma2", ALL, [1, 4, 1, 13, 0, 2, 3]),  # the head is split although it is soft-capped
]


@pytest.fixture
def small_head(monkeypatch):
    """Heads are split from 4 KB, so that one of 131 x 128 bytes gives 5 parts."""
    monkeypatch.setattr(split_head, "LARGEST", 4096)


@pytest.mark.usefixtures("small_head")
@pytest.mark.parametrize(("architecture", "names", "times"), FIRE, ids=lambda value: value if isinstance(value, str)
                         else "all" if value == ALL else "+".join(map(str, value)))
def test_rules_fire_and_numbers_stay(models, architecture, names, times):
    folder, decoder, expected = models(architecture)
    lowered, report = lower(canonical(folder), named(*names))
    assert report.fired == dict(zip([rule.name for rule in named(*names)], times, strict=True))
    assert report.declined == ()
    set_levels(lowered, kernels(lowered))
    onnx.save(lowered, folder / "lowered.onnx")
    onnx.checker.check_model(str(folder / "lowered.onnx"))
    assert relative_l2(run_graph(lowered, folder, decoder, CHUNKS), expected) <= FLOAT_LIMIT


@pytest.mark.parametrize("architecture", ["llama3", "llama-biased"])
def test_int8_activations_stay_within_their_rounding(models, architecture):
    folder, decoder, expected = models(architecture)
    lowered, _ = lower(canonical(folder))
    assert FLOAT_LIMIT < relative_l2(run_graph(lowered, folder, decoder, CHUNKS), expected) <= INT8_LIMIT


def test_lowered_graph_keeps_nothing_of_what_it_replaced(models):
    folder, _, _ = models("llama3")
    model, _ = lower(canonical(folder))
    assert not model.functions
    assert {opset.domain for opset in model.opset_import} == {"", "com.microsoft"}
    kinds = [node.op_type for node in model.graph.node]
    assert not {"Int4MatMul", "Int8MatMul", "CachedAttention", "Gather"} & set(kinds)
    assert kinds.count("Add") == 1  # the last residual, of which only the newest positions are normalized
    assert kinds.count("Split") == 2  # gate and up; q, k and v go into the attention as one
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    assert {value.name for value in model.graph.input} <= read


def test_merged_weights_are_ranges_of_the_same_file(models):
    folder, _, _ = models("llama3")
    places = {tensor.name: place(tensor) for tensor in canonical(folder).graph.initializer}
    merged = {tensor.name: place(tensor) for tensor in lower(canonical(folder))[0].graph.initializer}
    for kind in ("qweight", "scales", "zero_points"):
        parts = [places[f"blocks.1.{name}.{kind}"] for name in ("q", "k", "v")]
        start, length = parts[0][0], sum(length for _, length in parts)
        assert merged[f"blocks.1.q+k+v.{kind}"] == (start, length)


@pytest.mark.usefixtures("small_head")
def test_parts_of_a_split_head_are_the_whole_head(models):
    folder, _, _ = models("llama3")
    whole = {tensor.name: place(tensor) for tensor in canonical(folder).graph.initializer}
    parts = {tensor.name: place(tensor) for tensor in lower(canonical(folder))[0].graph.initializer}
    for kind in ("qweight", "scales", "zero_points"):
        start, _ = whole[f"head.{kind}"]
        for index in range(5):
            assert parts[f"head.{index}.{kind}"][0] == start
            start += parts[f"head.{index}.{kind}"][1]
        assert start == sum(whole[f"head.{kind}"])


def place(tensor):
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return int(entries.get("offset", 0)), int(entries.get("length", 0))


# Edits of the canonical graph that a rule must refuse.
def node_named(model, name):
    return next(node for node in model.graph.node if node.name == name)


def set_attribute(model, name, attribute, value):
    node = node_named(model, name)
    next(entry for entry in node.attribute if entry.name == attribute).i = value


def drop_bias(model, name):
    """Whoever read the sum reads the matmul."""
    add = node_named(model, f"{name}.biased")
    for node in model.graph.node:
        node.input[:] = [add.input[0] if tensor == add.output[0] else tensor for tensor in node.input]
    model.graph.node.remove(add)


def move(model, name):
    """Another place in the weights file."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    entry = next(entry for entry in tensor.external_data if entry.key == "offset")
    entry.value = str(int(entry.value) + 1)


def embed_constant(model, name, shape):
    """A constant inside the graph in place of a stored one."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    model.graph.initializer.remove(tensor)
    model.graph.initializer.append(helper.make_tensor(name, tensor.data_type, shape, [0.5] * math.prod(shape)))


def weights_as_input(model, name):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    model.graph.initializer.remove(tensor)
    model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def constant_addend(model, name):
    model.graph.initializer.append(helper.make_tensor("ones", onnx.TensorProto.FLOAT, [128], [1.0] * 128))
    node_named(model, name).input[1] = "ones"


def second_norm(model, name):
    twin = helper.make_node("RMSNormalization", node_named(model, name).input, ["twin"], "twin", axis=-1, epsilon=1e-6)
    model.graph.node.append(twin)


def constant_ids(model):
    model.graph.initializer.append(helper.make_tensor("ids", onnx.TensorProto.INT64, [1, 2], [3, 4]))
    node_named(model, "embed.rows").input[1] = "ids"


DECLINE = {
    "embedding-of-constant-ids": ("embedding", "llama3", constant_ids, (), "token ids in a stored table"),
    "merge-apart": ("merge_linears", "llama3", move, ("blocks.0.k.qweight",), "do not lie side by side"),
    "merge-scales-apart": ("merge_linears", "llama3", move, ("blocks.0.v.scales",), "v.scales do not lie side"),
    "merge-bias-apart": ("merge_linears", "llama-biased", move, ("blocks.0.v.bias",), "v.bias do not lie side"),
    "merge-some-biased": ("merge_linears", "llama-biased", drop_bias, ("blocks.0.k",), "some of the linears have"),
    "merge-groups": ("merge_linears", "llama3", set_attribute, ("blocks.0.q", "group_size", 128), "group sizes"),
    "head-given": ("split_head", "llama3", weights_as_input, ("head.qweight",), "no constants"),
    "head-embedded": ("split_head", "llama3", embed_constant, ("head.scales", [131, 2]), "no ranges"),
    "matmul-group-48": ("matmul_nbits", "llama3", set_attribute, ("blocks.0.q", "group_size", 48), "group size 48"),
    "matmul-group-8": ("matmul_nbits", "llama3", set_attribute, ("blocks.0.q", "group_size", 8), "group size 8"),
    "matmul-weights-given": ("matmul_nbits", "llama3", weights_as_input, ("blocks.0.q.qweight",), "no constants"),
    "bias-of-one": ("fuse_bias", "llama-biased", embed_constant, ("blocks.0.o.bias", [1]), r"has shape \[1\], \[128\]"),
    "attention-head-20": ("attention", "llama3", set_attribute, ("blocks.0.attention", "head_size", 20), "size 20"),
    "attention-rotary-table": ("attention", "llama3", weights_as_input, ("rope.cos",), "rotary tables are no constant"),
    "attention-slopes": ("attention", "mpt", weights_as_input, ("alibi.slopes",), "slopes are no constants"),
    "norm-of-constant": ("skip_norm", "llama3", constant_addend, ("blocks.0.attn_residual",), "'ones' is a constant"),
    "norm-axis": ("skip_norm", "llama3", set_attribute, ("blocks.0.mlp_norm", "axis", 1), "more than the last axis"),
    "norm-twice": ("skip_norm", "llama3", second_norm, ("blocks.0.mlp_norm",), "another norm took the sum"),
}


@pytest.mark.usefixtures("small_head")
@pytest.mark.parametrize("case", DECLINE)
def test_rule_declines_with_its_reason(models, case):
    rule, architecture, edit, arguments, reason = DECLINE[case]
    folder, _, _ = models(architecture)
    model = canonical(folder)
    edit(model, *arguments)
    rules = named("matmul_nbits", rule) if rule == "fuse_bias" else named(rule)
    _, before = lower(canonical(folder), rules)
    _, report = lower(model, rules)
    refusals = [refusal for refusal in report.declined if refusal.rule == rule]
    assert refusals
    assert all(re.search(reason, refusal.reason) for refusal in refusals), refusals
    # every other match is rewritten; a second norm of one sum is a match more
    matches = before.fired[rule] + ("twice" in case)
    assert report.fired[rule] == matches - len(refusals)


def test_a_declined_node_keeps_its_body_and_the_graph_its_numbers(models):
    """q, k and v lie apart and block 1's attention is refused: both blocks still compute what they did."""
    folder, decoder, expected = models("llama3")
    model = canonical(folder)
    set_attribute(model, "blocks.1.attention", "head_size", 20)  # the body reads the size from the cache
    set_attribute(model, "blocks.0.down", "group_size", 48)  # and the group size from the scales
    lowered, report = lower(model)
    assert [(refusal.rule, refusal.node) for refusal in report.declined] == [
        ("matmul_nbits", "blocks.0.down"), ("attention", "blocks.1.attention")]
    assert {function.name for function in lowered.functions} == {"Int4MatMul", "CachedAttention"}
    set_levels(lowered, kernels(lowered))
    assert relative_l2(run_graph(lowered, folder, decoder, CHUNKS), expected) <= FLOAT_LIMIT
