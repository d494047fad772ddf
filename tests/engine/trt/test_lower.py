"""Lowering for TensorRT, all families: the lowered graph, run by its reference, computes what the canonical one does.

The oracle is the canonical graph, run by onnxruntime as it stands.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from lowered import (
    ARCHITECTURES,
    CHUNKS,
    CONTEXT,
    build_tiny,
    canonical,
    graph_of_shape,
    half_limit,
    plugins,
    relative_l2,
    run_graph,
    run_lowered,
)
from onnx import TensorProto

from edge_awq.engine.trt import names
from edge_awq.engine.trt.lower import LoweringOptions, lower
from edge_awq.engine.trt.reference import LoweredReference
from edge_awq.engine.trt.weight_input import load
from edge_awq.errors import EdgeAwqError
from edge_awq.weights import read_layout

FLOAT_LIMIT = 1e-5  # the canonical graph computes in float32


@pytest.fixture(scope="module", params=ARCHITECTURES)
def family(request, tmp_path_factory):
    """(architecture, folder, decoder, logits of the canonical graph)."""
    folder = tmp_path_factory.mktemp(request.param)
    decoder = build_tiny(folder, request.param)
    return request.param, folder, decoder, run_graph(canonical(folder), folder, decoder, CHUNKS)


def test_lowered_graph_means_the_canonical_one(family):
    """Prompt, two tokens and a chunk, nothing rounded."""
    _, folder, _, expected = family
    assert relative_l2(run_lowered(lower(canonical(folder)), folder, exact=True), expected) <= FLOAT_LIMIT


def test_float16_stays_within_its_rounding(family):
    _, folder, _, expected = family
    lowered = lower(canonical(folder))
    assert FLOAT_LIMIT < relative_l2(run_lowered(lowered, folder), expected) <= half_limit(lowered.model)


# Plugins of a decoder layer, and nodes of standard ops in it (casts, which are fused with what they feed, not counted).
FIVE = (5, 0)
LAUNCHES = dict.fromkeys(ARCHITECTURES, FIVE) | {
    "mpt-clipped": (5, 1),  # the bound on q, k and v
    "qwen3": (9, 4),  # q, k and v alone, as q and k are normalized head by head; a reshape moves nothing
    "qwen3-window": (9, 4),
    "gemma2": (7, 2),  # what is added to the residual stream is normalized first
    "gemma3": (11, 6),
    "glm4": (7, 2),
    "nemotron": (5, 2),  # the square, and AWQ's scale behind it
    "arcee": (5, 2),
    "olmo2": (11, 2),
    "olmo3": (11, 2),
    "exaone4": (11, 6),
    "exaone4-hybrid": (11, 6),
}


def test_launches_of_a_decode_layer(family):
    architecture, folder, decoder, _ = family
    model = lower(canonical(folder)).model
    for layer in range(decoder.config.num_layers):
        nodes = [node for node in model.graph.node if node.name.startswith(f"blocks.{layer}.")]
        own = [node for node in nodes if node.domain == names.DOMAIN]
        rest = [node for node in nodes if node.domain != names.DOMAIN and node.op_type != "Cast"]
        assert (len(own), len(rest)) == LAUNCHES[architecture], [node.name for node in nodes]


def test_only_plugins_and_what_tensorrt_8_6_parses(family):
    _, folder, decoder, _ = family
    model = lower(canonical(folder)).model
    onnx.checker.check_model(model)
    assert not model.functions
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 17, "edge.awq": 2}
    for node in model.graph.node:
        if node.domain == "":
            assert node.op_type in names.STANDARD_OPS
            assert onnx.defs.get_schema(node.op_type, 17)
        else:
            header = {entry.name: entry.s.decode() for entry in node.attribute if entry.s}
            assert (node.domain, header) == ("edge.awq", {"plugin_version": "2", "plugin_namespace": "edge.awq"})
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    caches = [name for name in kinds if name.startswith(("past_key", "past_value", "present_"))]
    assert len(caches) == 4 * decoder.config.num_layers
    assert {kinds[name] for name in caches} == {TensorProto.FLOAT16}
    assert kinds["logits"] == TensorProto.FLOAT and kinds["input_ids"] == kinds["past_length"] == TensorProto.INT64
    assert "num_logits" not in kinds


def test_an_engine_holds_no_weights(family):
    """Every stored tensor comes in as an input, once, and what is left inside is small."""
    _, folder, _, _ = family
    lowered = lower(canonical(folder))
    sizes = [math.prod(tensor.dims) for tensor in lowered.model.graph.initializer]
    assert max(sizes, default=0) <= 256  # the models' positions
    assert not any(tensor.external_data for tensor in lowered.model.graph.initializer)
    layout = read_layout(folder / "weights.safetensors")
    parts = [part for weight in lowered.weights for part in weight.parts]
    assert sorted(parts) == sorted(layout)
    inputs = {value.name: value.type.tensor_type for value in lowered.model.graph.input}
    for weight in lowered.weights:
        array = load(weight, folder / "weights.safetensors", layout)
        declared = inputs[weight.name]
        assert onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type) == array.dtype == weight.numpy_dtype
        assert tuple(dim.dim_value for dim in declared.shape.dim) == array.shape == weight.shape
        assert array.nbytes == weight.nbytes


# Rows: as many as norms in front of matmuls hold in shared memory.
@pytest.mark.parametrize(("name", "rows"), [
    ("llama-2-7b", 8), ("llama-2-13b", 6), ("mpt-7b", 8), ("mpt-30b", 4), ("falcon-7b", 7)])
def test_full_sized_models_decode_in_five_launches_a_layer(name, rows):
    """Besides them, the lookup of tokens, the head, and the choice."""
    model, config = graph_of_shape(name)
    lowered = lower(model, LoweringOptions(choose=True))
    assert len(lowered.model.graph.node) == 5 * config.num_layers + 3
    assert (lowered.most_rows, lowered.declined) == (rows, ())
    assert lowered.model.ByteSize() < 250_000


# name -> (architecture, bits, head bits, what differs)
VARIANTS = {
    "head4": ("llama3", 4, 4, {}),
    "head4-tied": ("qwen2", 4, 4, {}),
    "head16": ("llama3", 4, 16, {}),
    "head16-tied": ("qwen2", 4, 16, {}),
    "fp16": ("llama-biased", 16, 16, {}),
    "fp16-tied": ("mpt", 16, 16, {}),
    "odd-groups": ("llama3", 4, 8, {"hidden_size": 192, "intermediate_size": 320}),
    "gelu": ("llama2", 4, 8, {"hidden_act": "gelu"}),
    "gelu-tanh": ("llama2", 4, 8, {"hidden_act": "gelu_new"}),
    "relu": ("llama2", 4, 8, {"hidden_act": "relu"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_storing(variant, tmp_path):
    architecture, bits, head_bits, changes = VARIANTS[variant]
    decoder = build_tiny(tmp_path, architecture, bits, head_bits, **changes)
    expected = run_graph(canonical(tmp_path), tmp_path, decoder, CHUNKS)
    lowered = lower(canonical(tmp_path))
    assert lowered.declined == ()
    assert relative_l2(run_lowered(lowered, tmp_path, exact=True), expected) <= FLOAT_LIMIT
    assert relative_l2(run_lowered(lowered, tmp_path), expected) <= half_limit(lowered.model)


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


@pytest.mark.parametrize("architecture", ["llama3", "opt", "mpt"])
def test_tensorrt_8_gets_32_bit_integers(models, architecture):
    folder, expected = models(architecture)
    lowered = lower(canonical(folder), LoweringOptions(tensorrt_major=8, choose=True))
    kinds = {value.name: value.type.tensor_type for value in (*lowered.model.graph.input, *lowered.model.graph.output)}
    assert all(kind.elem_type != TensorProto.INT64 for kind in kinds.values())
    assert all([dim.dim_value for dim in kinds[name].shape.dim] == [1, 2] for name in ("past_length", "seed"))
    assert [dim.dim_value for dim in kinds["tokens"].shape.dim][-1] == 2
    assert relative_l2(run_lowered(lowered, folder, exact=True), expected) <= FLOAT_LIMIT


@pytest.mark.parametrize("architecture", ["llama3", "gemma2"])
def test_last_logits_and_greedy_tokens(models, architecture):
    folder, expected = models(architecture)
    lowered = lower(canonical(folder), LoweringOptions(last_logits=True, choose=True))
    reference = LoweredReference(lowered, folder / "weights.safetensors", CONTEXT, exact=True)
    found = [reference(ids) for ids in CHUNKS]
    last = np.cumsum([len(ids) for ids in CHUNKS]) - 1
    assert relative_l2(np.concatenate([each["logits"][0] for each in found]), expected[last]) <= FLOAT_LIMIT
    assert [int(each["tokens"][0, 0]) for each in found] == expected[last].argmax(1).tolist()


@pytest.mark.parametrize("architecture", ["llama3", "llama-biased", "mpt", "opt"])
def test_weights_inside_are_the_same_bytes(models, architecture):
    """Constants of the self-contained graph, loaded from their ranges by onnx, are what the inputs would be."""
    folder, _ = models(architecture)
    inside = lower(canonical(folder), LoweringOptions(weights_inside=True))
    assert inside.weights == ()
    assert not any(tensor.raw_data for tensor in inside.model.graph.initializer if tensor.external_data)
    onnx.save(inside.model, folder / "lowered.onnx")
    loaded = {tensor.name: onnx.numpy_helper.to_array(tensor)
              for tensor in onnx.load(folder / "lowered.onnx").graph.initializer}
    layout = read_layout(folder / "weights.safetensors")
    outside = lower(canonical(folder))
    for weight in outside.weights:
        expected = load(weight, folder / "weights.safetensors", layout)
        name = weight.name.removesuffix(".float16")  # biases: stored float32 and cast in the graph
        np.testing.assert_array_equal(loaded[name].astype(weight.numpy_dtype), expected)


@pytest.mark.parametrize("major", [10, 8])
@pytest.mark.parametrize("architecture", ["llama3", "mpt", "gemma2"])
def test_a_cache_of_bytes(models, architecture, major):
    """As far from the canonical graph as noise of scale / sqrt(12) in all keys and values takes it, and no nearer than
    that could be; a scale is 1/127 of a row's largest number, hardly more than 3/127 of their root mean square."""
    folder, expected = models(architecture)
    lowered = lower(canonical(folder), LoweringOptions(tensorrt_major=major, kv_bits=8))
    kinds = {value.name: value.type.tensor_type for value in (*lowered.model.graph.input, *lowered.model.graph.output)}
    for name in ("past_key", "past_value", "present_key", "present_value"):
        cache, scale = kinds[f"{name}_0"], kinds[f"{name}_scale_0"]
        assert (cache.elem_type, scale.elem_type) == (TensorProto.INT8, TensorProto.FLOAT)
        assert list(scale.shape.dim) == list(cache.shape.dim)[:3]
    attentions = [node for node in plugins(lowered.model) if node.op_type == "CachedAttention"]
    assert all(len(node.output) == 5 for node in attentions)
    noise = math.sqrt(2 * len(attentions) / 12) * 3 / 127
    assert noise / 20 < relative_l2(run_lowered(lowered, folder, exact=True), expected) < noise
    assert relative_l2(run_lowered(lowered, folder), expected) < noise + half_limit(lowered.model)


def test_a_cache_of_other_bits_is_refused(models):
    folder, _ = models("llama3")
    with pytest.raises(EdgeAwqError, match="kv_bits = 4: no kernel has such a cache"):
        lower(canonical(folder), LoweringOptions(kv_bits=4))


def test_the_reference_wants_weights_as_inputs(models):
    folder, _ = models("llama3")
    inside = lower(canonical(folder), LoweringOptions(weights_inside=True))
    with pytest.raises(EdgeAwqError, match="weights of this graph are inside"):
        LoweredReference(inside, folder / "weights.safetensors", CONTEXT)


def test_lowering_leaves_its_input_alone(models):
    folder, _ = models("llama3")
    model = canonical(folder)
    before = model.SerializeToString(deterministic=True)
    first, second = lower(model), lower(model)
    assert model.SerializeToString(deterministic=True) == before
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
