"""Compile and run: every architecture through the engine, against the torch decoder on the weights that are stored."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from built import GROUP_SIZE, build, build_from, random_ids, relative_l2
from compiled import ALL_FLOAT, ALL_INT8, CONTEXT, IDS, compiled
from transformers import AutoModelForCausalLM

from edge_awq.engine.ort import windows
from edge_awq.engine.ort.compile import compile_bundle
from edge_awq.engine.ort.engine import EngineSettings, OrtEngine, _untouched_zeros
from edge_awq.engine.ort.names import engine_name
from edge_awq.engine.ort.runtime import without_complaint
from edge_awq.engine.ort.session import SPIN_US, SessionSettings, can_bound_spinning, physical_cores
from edge_awq.model.decoder import logits, norm
from tiny import ARCHITECTURES, UNGROUPED, make_tiny

FLOAT_LIMIT = 1e-5  # float32 on both sides, in another order: the decoder's own limit against transformers
# int8 activations move a group of 64 by at most sqrt(64 / 12) / 127 = 1.8 % of its length (127 steps of the largest
# value); two blocks have 8 matmuls one after the other and the head is one, with independent errors: sqrt(9) * 1.8 %.
INT8_LIMIT = 0.055


def expected_logits(decoder, ids):
    with torch.no_grad():
        return logits(decoder, torch.tensor([ids]))[0].numpy()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exact(request, tmp_path_factory):
    """An engine with float32 activations, its decoder, and that decoder's logits [40, vocab_size]."""
    folder = tmp_path_factory.mktemp(request.param)
    bits = 16 if request.param in UNGROUPED else 4
    decoder = build(folder, request.param, bits, min(2 * bits, 16))
    return compiled(folder, ALL_FLOAT), decoder, expected_logits(decoder, IDS)


def test_all_logits_equal_decoder(exact):
    engine, _, expected = exact
    engine.truncate(0)
    assert relative_l2(engine.logits(IDS), expected) <= FLOAT_LIMIT
    assert engine.length == len(IDS)


def test_chunked_prompt_then_tokens_equal_decoder(exact):
    engine, _, expected = exact
    engine.truncate(0)
    found = [engine.prefill(IDS[:33]).copy(), *(engine.step(token).copy() for token in IDS[33:])]
    assert relative_l2(np.stack(found), expected[32:]) <= FLOAT_LIMIT


def test_another_continuation_after_truncate_equals_decoder(exact):
    engine, decoder, _ = exact
    engine.truncate(0)
    engine.prefill(IDS)
    engine.truncate(19)
    other = random_ids(12, seed=5)
    found = [engine.prefill(other[:7]).copy(), *(engine.step(token).copy() for token in other[7:])]
    assert relative_l2(np.stack(found), expected_logits(decoder, IDS[:19] + other)[25:]) <= FLOAT_LIMIT


# name -> (architecture, bits, head bits, what differs): every way of storing, and shapes whose rules decline.
VARIANTS = {
    "head4": ("llama3", 4, 4, {}),
    "head8-tied": ("qwen2", 4, 8, {}),
    "head16": ("llama3", 4, 16, {}),
    "head16-tied": ("qwen2", 4, 16, {}),
    "fp16": ("llama-biased", 16, 16, {}),
    "fp16-tied": ("qwen2", 16, 16, {}),
    "odd-groups": ("llama3", 4, 8, {"hidden_size": 192, "intermediate_size": 320, "head_dim": 32}),
    "head-of-24": ("mistral", 4, 8, {"head_dim": 24, "hidden_size": 192, "num_attention_heads": 8}),
    "head-of-20": ("mistral", 4, 8, {"head_dim": 20, "num_attention_heads": 16}),
    "fp16-mpt": ("mpt", 16, 16, {}),
    "fp16-falcon": ("falcon", 16, 16, {}),
    "fp16-opt": ("opt", 16, 16, {}),
    "head4-gemma2": ("gemma2", 4, 4, {}),
    "gelu": ("llama2", 4, 8, {"hidden_act": "gelu"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_storing_equals_decoder(variant, tmp_path):
    architecture, bits, head_bits, changes = VARIANTS[variant]
    decoder = build(tmp_path, architecture, bits, head_bits, **changes)
    engine = compiled(tmp_path, ALL_FLOAT)
    found = [*engine.logits(IDS[:30]), engine.prefill(IDS[30:37]).copy(), *(engine.step(i).copy() for i in IDS[37:])]
    expected = expected_logits(decoder, IDS)
    assert relative_l2(np.stack(found), expected[[*range(30), *range(36, 40)]]) <= FLOAT_LIMIT


def test_an_attention_that_onnxruntime_cannot_take_is_reported(tmp_path):
    build(tmp_path, "mistral", **VARIANTS["head-of-20"][3])
    report = compile_bundle(tmp_path, IDS)
    assert {(refusal.rule, refusal.reason) for refusal in report.lowering.declined} == {
        ("attention", "head size 20 is no multiple of 8")}


@pytest.mark.parametrize("chunk", [1, 7, 16, 39, 40, 1000])
def test_chunk_size_does_not_change_the_answer(chunk, tmp_path):
    decoder = build(tmp_path, "mistral")  # windows of 8 tokens, smaller and larger than a chunk
    engine = compiled(tmp_path, ALL_FLOAT, chunk)
    assert relative_l2(engine.prefill(IDS), expected_logits(decoder, IDS)[-1]) <= FLOAT_LIMIT


@pytest.mark.parametrize("architecture", ["llama3", "qwen2-window"])
def test_int8_activations_stay_within_their_rounding(architecture, tmp_path):
    decoder = build(tmp_path, architecture)
    engine = compiled(tmp_path, ALL_INT8)
    assert FLOAT_LIMIT < relative_l2(engine.logits(IDS), expected_logits(decoder, IDS)) <= INT8_LIMIT


def test_a_full_cache_is_used_to_its_last_row(tmp_path):
    decoder = build(tmp_path, "llama3")
    engine = compiled(tmp_path, ALL_FLOAT, context=len(IDS))
    engine.prefill(IDS[:-1])
    assert relative_l2(engine.step(IDS[-1]), expected_logits(decoder, IDS)[-1]) <= FLOAT_LIMIT


# The accuracy check


def rounded_to_int8(x: np.ndarray) -> np.ndarray:
    """x [.., K] as the kernel sees it: per group, 127 steps of the largest magnitude; the oracle for its error."""
    groups = x.reshape(*x.shape[:-1], -1, GROUP_SIZE).astype(np.float64)
    step = np.abs(groups).max(-1, keepdims=True) / 127
    return (np.rint(groups / step) * step).reshape(x.shape)


def test_measured_errors_are_those_of_int8_rounding(tmp_path):
    decoder = build(tmp_path, "llama3")
    report = compile_bundle(tmp_path, IDS).accuracy
    block = decoder.block(0)
    x = norm(decoder.config, "attn_norm", decoder.embed()[torch.tensor(IDS)], block).numpy()
    weight = np.concatenate([block[f"{name}.weight"].numpy() for name in "qkv"]).astype(np.float64)
    exact, moved = x @ weight.T, rounded_to_int8(x) @ weight.T
    error = np.sqrt(np.mean(np.sum((moved - exact) ** 2, -1) / np.sum(exact**2, -1)))
    # Kernels differ in how they break ties and in 127 against 128 steps, which moves the error by a few percent.
    assert report.errors["blocks.0.q+k+v"] == pytest.approx(error, rel=0.1)
    assert len(report.errors) == 2 * 4 + 1
    assert report.float_activations == ()


def test_report_compares_the_compiled_graph_with_the_decoder(tmp_path):
    decoder = build(tmp_path, "llama3")
    report = compile_bundle(tmp_path, IDS)
    engine = OrtEngine(tmp_path / report.file, tmp_path / "weights.safetensors", EngineSettings(CONTEXT, CONTEXT))
    found, expected = torch.tensor(engine.logits(IDS)).double(), torch.tensor(expected_logits(decoder, IDS)).double()
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    kl = torch.nn.functional.kl_div(found.log_softmax(1), expected.log_softmax(1), log_target=True, reduction="none")
    assert report.accuracy.probe_tokens == len(IDS)
    assert report.accuracy.logits_error == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-3)
    assert report.accuracy.logits_kl == pytest.approx(float(kl.sum(1).mean()), rel=1e-3)
    assert report.accuracy.top1_agreement == float((found.argmax(1) == expected.argmax(1)).double().mean())


@pytest.fixture
def huge(tmp_path):
    """A model whose first block multiplies one channel by 10000 that q, k and v ignore: all int8 steps go to it."""
    make_tiny(tmp_path / "source", "llama3")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.input_layernorm.weight[5] = 1e4
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight[:, 5] = 0
    model.save_pretrained(tmp_path / "source")
    return tmp_path, build_from(tmp_path)


def test_a_matmul_of_huge_activations_goes_back_to_float(huge):
    folder, decoder = huge
    expected = expected_logits(decoder, IDS)
    forced = relative_l2(compiled(folder, ALL_INT8).logits(IDS), expected)
    report = compile_bundle(folder, IDS)
    engine = OrtEngine(folder / report.file, folder / "weights.safetensors", EngineSettings(CONTEXT, CONTEXT))
    assert report.accuracy.float_activations == ("blocks.0.q+k+v",)
    assert report.accuracy.errors["blocks.0.q+k+v"] > 0.3
    assert max(error for name, error in report.accuracy.errors.items() if name != "blocks.0.q+k+v") < 0.02
    assert relative_l2(engine.logits(IDS), expected) <= INT8_LIMIT < forced


# Memory, independence, errors


def test_cache_costs_memory_only_where_it_is_written(tmp_path):
    """Cache buffers of 537 MB hold 10 tokens: less than a tenth of them may become resident."""
    build(tmp_path, "llama3")
    compiled(tmp_path, ALL_INT8).prefill(IDS)  # what the libraries need is there now
    before = resident_bytes()
    engine = compiled(tmp_path, ALL_INT8, context=1 << 19)
    engine.prefill(IDS[:10])
    assert resident_bytes() - before < 50e6


def test_cache_of_heads_as_large_as_huge_pages_is_not_touched_by_their_first_rows():
    """32 heads of 2 MiB whose first row is written: 32 pages of 4 KiB, where huge pages would be 64 MiB."""
    rows = _untouched_zeros((1, 32, 4096, 128))
    before = resident_bytes()
    rows[:, :, 0] = 1
    assert resident_bytes() - before < 4e6
    assert not rows[:, :, 1:3].any()


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


@pytest.mark.parametrize(("spin_us", "spins"), [(0, False), (SPIN_US, False), (1_000_000, True)])
def test_idle_threads_leave_the_machine_to_others(spin_us, spins, tmp_path):
    """CPU time of 50 ms, from 10 ms after a run on: none, unless threads may spin for that long."""
    if spins and not can_bound_spinning(onnxruntime.__version__):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} cannot limit spinning, so it never spins")
    build(tmp_path, "llama3")
    report = compile_bundle(tmp_path, IDS)
    settings = EngineSettings(CONTEXT, CONTEXT, SessionSettings(4, spin_us))
    engine = OrtEngine(tmp_path / report.file, tmp_path / "weights.safetensors", settings)
    engine.prefill(IDS)
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.05)
    assert (time.process_time() - before > 2e-3) == spins


@pytest.mark.parametrize(("version", "bounded"), [("1.23.2", False), ("1.25.1", False), ("1.26.0", True)])
def test_only_a_runtime_that_takes_a_limit_spins(version, bounded):
    assert can_bound_spinning(version) == bounded


def test_running_needs_neither_onnx_nor_torch(tmp_path):
    build(tmp_path, "llama3")
    report = compile_bundle(tmp_path, IDS)
    code = f"""
import sys
sys.modules["onnx"] = sys.modules["torch"] = None
from pathlib import Path
from edge_awq.engine.ort.engine import EngineSettings, OrtEngine
folder = Path({str(tmp_path)!r})
engine = OrtEngine(folder / {report.file!r}, folder / "weights.safetensors", EngineSettings(8, 8))
assert engine.prefill([1, 2, 3]).shape == (131,) and engine.vocab_size == 131
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("strange", [True, False])
def test_only_the_complaint_about_a_gpu_that_is_no_pci_device_is_left_out(strange, tmp_path, capfd):
    (tmp_path / "card1/device").mkdir(parents=True)
    (tmp_path / "card1-DP-1").mkdir()  # what hangs on it
    if not strange:
        (tmp_path / "card1/device/vendor").touch()
    complaint, other = b"[W:onnxruntime:Default, device_discovery.cc:164] no\n", b"something else\n"
    with pytest.raises(ImportError), without_complaint(tmp_path):
        os.write(2, complaint + other)
        raise ImportError("also then")
    assert capfd.readouterr().err.encode() == (other if strange else complaint + other)


@pytest.mark.parametrize(("architecture", "window", "says"), [("mistral", 8, True), ("mistral", 256, False),
                                                             ("llama3", None, False)])
def test_windows_are_counted_as_the_runtime_counts_them(architecture, window, says, tmp_path, monkeypatch):
    """As on a workstation and a device with onnxruntimes of two kinds. A window of all 256 positions is none."""
    build(tmp_path, architecture, **({"sliding_window": window} if window else {}))
    report = compile_bundle(tmp_path, IDS)
    files = tmp_path / report.file, tmp_path / "weights.safetensors"
    expected = OrtEngine(*files, EngineSettings(CONTEXT, CONTEXT)).logits(IDS)
    here, graph = windows.counting(), files[0].read_bytes()
    there = {"with the newest": "before the newest", "before the newest": "with the newest"}[here]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(windows, "counting", lambda: there)
        assert windows.counted_here(graph) == graph or says
        files[0].write_bytes(windows.counted_here(graph))
        sizes = local_windows(files[0])
        assert sizes == [windows.kernel_window(window) if says else windows.UNLIMITED] * 2
    assert np.array_equal(OrtEngine(*files, EngineSettings(CONTEXT, CONTEXT)).logits(IDS), expected)
    assert windows.counted_here(b"no graph, though it names edge_awq.windows").startswith(b"no graph")


def local_windows(graph):
    """What the attentions of a lowered graph are told."""
    return [attribute.i for node in onnx.load(graph, load_external_data=False).graph.node
            for attribute in node.attribute if attribute.name == "local_window_size"]


def test_compiled_name_follows_the_graph(tmp_path):
    build(tmp_path, "llama3")
    first = compile_bundle(tmp_path, IDS)
    assert first.file == f"engines/{engine_name(tmp_path / 'model.onnx')}"
    assert first.file == compile_bundle(tmp_path, IDS[:5]).file
    (tmp_path / "model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes() + b"\n")
    assert first.file != f"engines/{engine_name(tmp_path / 'model.onnx')}"


def test_physical_cores_are_at_least_one_and_no_more_than_cpus():
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
