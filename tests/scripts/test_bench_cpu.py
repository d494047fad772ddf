"""The benchmark: its statistics on made-up turns, its models' names, and one small run through a real process."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench_cpu import Plan, find_candidates, measure
from bench_models import gguf_name, stored_tensors
from bench_report import EngineRow, markdown_table, summarize
from edge_awq.bench.random_model import make_random_model
from edge_awq.bench.worker import Sample
from edge_awq.shapes import Shape, find_shape


def turn(**wall_s):
    return {name: Sample(4, seconds, 2 * seconds) for name, seconds in wall_s.items()}


def test_ratios_are_taken_inside_each_turn():
    # The machine slows down threefold; "ours" is twice as fast in every turn.
    turns = [turn(ours=1.0, peer=2.0), turn(ours=3.0, peer=6.0), turn(ours=1.0, peer=2.0)]
    summary = summarize(turns, base="peer")
    assert summary["ours"].ratio == summary["ours"].cpu_ratio == 2.0
    assert summary["ours"].ratio_quartiles == (2.0, 2.0)
    assert summary["peer"].ratio == 1.0


def test_medians_and_units():
    summary = summarize([turn(ours=seconds) for seconds in (1.0, 2.0, 8.0)], base="ours")["ours"]
    assert summary.tok_s == 2.0
    assert summary.cpu_ms_per_token == 1000.0
    assert 2.0 < summary.best_tenth_tok_s <= 4.0
    assert summary.turns == 3


def test_table_has_a_line_for_each_engine():
    summary = summarize([turn(ours=1.0, peer=2.0)], base="peer")
    rows = [EngineRow(name, summary[name], summary[name], 1.5, 800_000_000) for name in ("ours", "peer")]
    lines = markdown_table(rows, "peer", 512).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| ours | 4.0 | 4.0 | 500.0 | 2.00 (2.00 to 2.00) |")
    assert lines[2].endswith("| 1.50 | 0.80 |")


@pytest.mark.parametrize(("stored", "expected"), [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("lm_head.weight", "output.weight"),
    ("model.layers.13.self_attn.o_proj.weight", "blk.13.attn_output.weight"),
    ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
])
def test_gguf_names(stored, expected):
    assert gguf_name(stored) == expected


SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 1000, "max_position_embeddings": 128}
PLAN = Plan(prompt=16, rounds=2, turns=3, turn_tokens=2, loads=1)


@pytest.fixture(scope="module")
def small_shape():
    return Shape("small", {**find_shape("tinyllama-1.1b").config, **SMALL})


def test_bfloat16_is_read_without_torch(small_shape, tmp_path):
    checkpoint = make_random_model(tmp_path / "model", small_shape)
    expected = {}
    for shard in checkpoint.glob("*.safetensors"):
        expected |= {gguf_name(name): tensor for name, tensor in load_file(shard).items()}
    found = dict(stored_tensors(checkpoint))
    assert set(found) == set(expected)
    for name, values in found.items():
        wanted = expected[name].to(torch.float32 if values.ndim == 1 else torch.float16)
        np.testing.assert_array_equal(values, wanted.numpy())


def test_measures_our_engine_and_says_why_the_peers_are_missing(small_shape, tmp_path, monkeypatch):
    monkeypatch.setattr("bench_cpu.find_shape", lambda name: small_shape)
    candidates, skipped = find_candidates("small", tmp_path, peer_python="/bin/false")
    assert [candidate.name for candidate in candidates] == ["edge-awq"]
    assert skipped["llama.cpp"] == "/bin/false cannot import llama_cpp"
    result = measure(candidates, 1, PLAN)
    (row,) = result.rows
    assert (row.decode.turns, row.prefill.turns) == (3, 2)
    assert row.decode.tok_s > 0 and row.load_s > 0 and row.peak_rss_bytes > 10_000_000
    assert json.loads(json.dumps(asdict(result)))["base"] == "edge-awq"
