"""Bad calls, bundles and damaged files: one clear error each, and nothing changes."""

from __future__ import annotations

import dataclasses

import pytest
from built import build, relative_l2
from compiled import ALL_INT8, CONTEXT, IDS, compiled

from edge_awq.bundle import Bundle, Manifest
from edge_awq.engine import load_runtime
from edge_awq.engine.ort.compile import compile_bundle
from edge_awq.engine.ort.engine import EngineSettings, OrtEngine
from edge_awq.engine.ort.session import SessionSettings
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import CONTRACT_VERSION

FLOAT_LIMIT = 1e-5  # float32 on both sides, in another order


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a compiled engine, where any will do; tests give the cache back as they found it."""
    folder = tmp_path_factory.mktemp("small")
    build(folder, "llama3")
    engine = compiled(folder, ALL_INT8)
    engine.prefill(IDS[:10])
    return folder, engine


BAD_CALLS = {
    "no tokens": (lambda engine: engine.prefill([]), "no tokens"),
    "no tokens for logits": (lambda engine: engine.logits([]), "no tokens"),
    "too many tokens": (lambda engine: engine.prefill([1] * (CONTEXT - 9)), r"10 \+ 55 tokens do not fit .* of 64"),
    "too many logits": (lambda engine: engine.logits([1] * CONTEXT), r"10 \+ 64 tokens do not fit"),
    "token too large": (lambda engine: engine.step(131), "token 131 is outside the vocabulary of 131"),
    "token below zero": (lambda engine: engine.prefill([1, -1]), "token -1 is outside"),
    "truncate forwards": (lambda engine: engine.truncate(11), "cannot keep 11 tokens of a cache that holds 10"),
    "truncate below zero": (lambda engine: engine.truncate(-1), "cannot keep -1"),
    "no threads": (lambda engine: SessionSettings(threads=0), "threads = 0"),
    "no context": (lambda engine: EngineSettings(0, 1), "context = 0"),
    "no chunk": (lambda engine: EngineSettings(1, 0), "prefill_chunk = 0"),
    "unknown runtime": (lambda engine: load_runtime("abacus"), "runtime 'abacus' is not known"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call_is_one_clear_error_and_changes_nothing(small, case):
    _, engine = small
    call, message = BAD_CALLS[case]
    with pytest.raises(EdgeAwqError, match=message) as caught:
        call(engine)
    assert caught.value.hint
    assert engine.length == 10


def bundle_of(folder, **fields):
    empty = {field.name: None for field in dataclasses.fields(Manifest)}
    return Bundle(folder, Manifest(**{**empty, "context": 48, "prefill_chunk": 16, **fields}))


def test_bundle_opens_with_its_own_context_or_a_smaller_one(small):
    folder, engine = small
    runtime = load_runtime("onnxruntime")
    whole, part = runtime.open_engine(bundle_of(folder)), runtime.open_engine(bundle_of(folder), threads=1, context=20)
    assert (whole.context, part.context) == (48, 20)
    engine.truncate(0)
    assert relative_l2(part.prefill(IDS[:20]), engine.prefill(IDS[:20])) <= FLOAT_LIMIT
    with pytest.raises(EdgeAwqError, match="0 \\+ 21 tokens do not fit into the context of 20"):
        runtime.open_engine(bundle_of(folder), context=20).prefill(IDS[:21])
    engine.truncate(10)


def test_bundle_refuses_a_larger_context_than_its_own(small):
    with pytest.raises(EdgeAwqError, match=r"context = 49, but .* was built for 48 tokens") as caught:
        load_runtime("onnxruntime").open_engine(bundle_of(small[0]), context=49)
    assert "at most 48" in caught.value.hint


def test_bundle_that_was_compiled_from_another_graph_is_refused(small, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"another graph")
    name = rf"engines/onnxruntime-contract{CONTRACT_VERSION}-[0-9a-f]{{16}}\.onnx"
    with pytest.raises(EdgeAwqError, match=f"{name} is missing"):
        load_runtime("onnxruntime").open_engine(bundle_of(tmp_path))


def test_weights_may_be_a_link_to_another_disk(small, tmp_path):
    folder, engine = small
    (tmp_path / "weights.safetensors").symlink_to(folder / "weights.safetensors")
    graph = next((folder / "engines").iterdir())
    linked = OrtEngine(graph, tmp_path / "weights.safetensors", EngineSettings(CONTEXT, CONTEXT))
    linked.prefill(IDS[:10])
    assert relative_l2(linked.step(3), engine.step(3)) <= FLOAT_LIMIT
    engine.truncate(10)


def test_missing_engine_is_named(small):
    folder, _ = small
    with pytest.raises(EdgeAwqError, match=r"other\.onnx is missing"):
        OrtEngine(folder / "other.onnx", folder / "weights.safetensors", EngineSettings(8, 8))


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_engine_is_refused(small, damage, tmp_path):
    folder, _ = small
    graph = next((folder / "engines").iterdir()).read_bytes()
    data = {"cut": graph[: len(graph) // 2], "garbage": b"not a graph" * 100, "empty": b""}[damage]
    (tmp_path / "engine.onnx").write_bytes(data)
    with pytest.raises(EdgeAwqError, match="cannot load the compiled graph"):
        OrtEngine(tmp_path / "engine.onnx", folder / "weights.safetensors", EngineSettings(8, 8))


def test_weights_that_are_cut_short_stop_the_compiler_and_leave_nothing(tmp_path):
    build(tmp_path, "llama3")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(EdgeAwqError):
        compile_bundle(tmp_path, IDS)
    assert not list(tmp_path.glob("engines/*"))


def test_compiler_names_what_is_missing(tmp_path):
    with pytest.raises(EdgeAwqError, match=r"model\.onnx: cannot be read"):
        compile_bundle(tmp_path, IDS)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(EdgeAwqError, match=r"model\.onnx: cannot be read"):
        compile_bundle(tmp_path, IDS)
    build(tmp_path, "llama3")
    with pytest.raises(EdgeAwqError, match="no tokens"):
        compile_bundle(tmp_path, [])
