"""The plugin-free lowering on the CPU, every architecture, against the torch decoder on the weights that are stored."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from built import build, canonical, random_ids, relative_l2
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edge_awq.engine.standard.lower import lower
from edge_awq.engine.standard.options import StandardOptions
from edge_awq.engine.standard.write import GRAPH, WEIGHTS, write
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import DOMAIN
from edge_awq.model.decoder import logits
from tiny import ARCHITECTURES, UNGROUPED

CONTEXT = 64
FLOAT_LIMIT = 1e-5  # float32 on both sides, in another order: the decoder's own limit against transformers
IDS = random_ids(40)
CALLS = [IDS[:20], IDS[20:33], *([token] for token in IDS[33:])]  # a prompt in two chunks, then single tokens
DTYPES = {"float32": np.float32, "float16": np.float16}
ATTENTION_OPS = {"Attention", "Softmax"}


def half_limit(model: onnx.ModelProto) -> float:
    """float16 values are rounded by 2**-11 at most, 2**-11 / sqrt(3) root mean square, independently at every node."""
    return 2**-11 / 3**0.5 * len(model.graph.node) ** 0.5


def lowered(folder, activations="float32"):
    """The graph's file, as it is written beside its constants."""
    weights = folder / "weights.safetensors"
    options = StandardOptions(CONTEXT, activations)
    graph = write(lower(canonical(folder), weights, options), weights, folder / activations)
    onnx.checker.check_model(str(graph), full_check=True)
    return graph


def run_onnxruntime(graph):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # By default onnxruntime would multiply dequantized weights by activations that it rounds to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def run_reference(graph):
    evaluator = ReferenceEvaluator(str(graph))
    return lambda feeds: evaluator.run(None, feeds)


def run_calls(run, config, dtype):
    """Logits [40, vocab_size] of CALLS one after the other."""
    names = [f"{part}_{layer}" for layer in range(config.num_layers) for part in ("key", "value")]
    cache = [np.full((1, config.num_kv_heads, CONTEXT, config.head_size), 3, dtype) for _ in names]  # never seen
    found, past = [], 0
    for ids in CALLS:
        feeds = {"input_ids": np.array([ids]), "past_length": np.array([past]), "num_logits": np.array([len(ids)])}
        values, *cache = run(feeds | {f"past_{name}": each for name, each in zip(names, cache, strict=True)})
        assert values.dtype == np.float32 and all(each.dtype == dtype for each in cache)
        found.append(values[0])
        past += len(ids)
    return np.concatenate(found)


def expected_logits(decoder):
    with torch.no_grad():
        return logits(decoder, torch.tensor([IDS]))[0].numpy()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def built(request, tmp_path_factory):
    """A folder with a symmetric tiny model, and its decoder."""
    folder = tmp_path_factory.mktemp(request.param)
    bits = 16 if request.param in UNGROUPED else 4
    return folder, build(folder, request.param, bits, min(2 * bits, 16), symmetric=True)


def test_float32_equals_decoder(built):
    folder, decoder = built
    found = run_calls(run_onnxruntime(lowered(folder)), decoder.config, np.float32)
    assert relative_l2(found, expected_logits(decoder)) <= FLOAT_LIMIT


def test_float16_stays_within_its_rounding(built):
    folder, decoder = built
    graph = lowered(folder, "float16")
    found = run_calls(run_onnxruntime(graph), decoder.config, np.float16)
    model = onnx.load(graph, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert FLOAT_LIMIT < relative_l2(found, expected_logits(decoder)) <= half_limit(model)


@pytest.mark.parametrize(("architecture", "bits", "head_bits"), [
    ("llama3", 4, 4), ("llama3", 4, 16), ("qwen2", 4, 8), ("llama-biased", 16, 16), ("mpt", 4, 8), ("gemma2", 4, 4)])
def test_reference_equals_decoder(architecture, bits, head_bits, tmp_path):
    decoder = build(tmp_path, architecture, bits, head_bits, symmetric=True)
    found = run_calls(run_reference(lowered(tmp_path)), decoder.config, np.float32)
    assert relative_l2(found, expected_logits(decoder)) <= FLOAT_LIMIT


def test_attention_is_one_op_a_layer_unless_capped(tmp_path):
    kinds = {}
    for architecture in ("mistral", "gemma2"):
        build(tmp_path / architecture, architecture, symmetric=True)
        model = onnx.load(lowered(tmp_path / architecture), load_external_data=False)
        kinds[architecture] = [node.op_type for node in model.graph.node if node.op_type in ATTENTION_OPS]
    assert kinds == {"mistral": ["Attention"] * 2, "gemma2": ["Softmax"] * 2}


def test_constants_keep_their_size(tmp_path):
    """4 bits stay 4 bits: as large as the weights file, but for the zero points and the padding to pages."""
    build(tmp_path, "llama3", symmetric=True)
    graph = lowered(tmp_path, "float16")
    stored, written = tmp_path / "weights.safetensors", graph.with_name(WEIGHTS)
    constants = len([each for each in onnx.load(graph, load_external_data=False).graph.initializer
                     if each.external_data])
    assert written.stat().st_size <= stored.stat().st_size + 4096 * constants


def test_other_zero_points_are_refused(tmp_path):
    build(tmp_path, "llama3")
    with pytest.raises(EdgeAwqError, match=r"blocks\.0\.q: \d+ of 256 zero points are not 8") as caught:
        lowered(tmp_path)
    assert "--symmetric" in caught.value.hint
    assert not (tmp_path / "float32").exists()


def test_an_op_without_such_a_form_is_refused(tmp_path):
    build(tmp_path, "llama3", symmetric=True)
    model = canonical(tmp_path)
    model.graph.node.append(helper.make_node("Unheard", ["logits"], ["x"], domain=DOMAIN))
    with pytest.raises(EdgeAwqError, match="Unheard"):
        lower(model, tmp_path / "weights.safetensors", StandardOptions(CONTEXT))


@pytest.mark.parametrize(("arguments", "words"), [((0,), "context = 0"), ((8, "int8"), "activations = 'int8'")])
def test_impossible_options_are_refused(arguments, words):
    with pytest.raises(EdgeAwqError, match=words) as caught:
        StandardOptions(*arguments)
    assert caught.value.hint


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    build(tmp_path, "llama3", symmetric=True)
    weights = tmp_path / "weights.safetensors"
    graph = lower(canonical(tmp_path), weights, StandardOptions(CONTEXT))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(EdgeAwqError, match="taken"):
        write(graph, weights, tmp_path / "taken")
    (tmp_path / "full" / f"{WEIGHTS}.partial").mkdir(parents=True)
    with pytest.raises(EdgeAwqError, match="full"):
        write(graph, weights, tmp_path / "full")
    assert not (tmp_path / "full" / GRAPH).exists()
