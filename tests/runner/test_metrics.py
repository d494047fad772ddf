"""The definitions, by arithmetic that can be done in the head."""

import json
import subprocess
import sys

import numpy as np
import pytest

from edge_awq.memory import available_bytes, meminfo_bytes
from edge_awq.runner.generate import Token
from edge_awq.runner.metrics import (
    decode_tok_s,
    joules_per_token,
    prefill_tok_s,
    share_of_roof,
    summarize,
    weight_bytes_per_token,
)
from edge_awq.weights import TensorSpec, WeightsWriter

# 8 prompt tokens in 2 s; tokens at 2.5, 3.0 ... 4.5 s
TOKENS = [Token(index, index, "ab", 2.0 + 0.5 * index, 2.5 + 0.5 * index, None) for index in range(5)]
KEYS = ["text", "tokens", "prompt_tokens", "reused_tokens", "prefill_tok_s", "decode_tok_s", "ttft_s", "load_s",
        "peak_rss_bytes", "weight_bytes_per_token", "energy"]


def test_the_rates():
    assert prefill_tok_s(TOKENS, 8) == 8 / 2.0
    assert decode_tok_s(TOKENS) == 4 / 2.0
    assert decode_tok_s(TOKENS[:2]) == 1 / 0.5


@pytest.mark.parametrize("count", [0, 1])
def test_a_rate_of_fewer_than_two_tokens_is_not_known(count):
    assert decode_tok_s(TOKENS[:count]) is None
    assert joules_per_token(3.0, count) is None


def test_the_rate_of_prefill_counts_what_ran():
    summary = summarize(TOKENS, 8, reused_tokens=6)
    assert (summary.prompt_tokens, summary.reused_tokens, summary.prefill_tok_s) == (8, 6, 2 / 2.0)


def test_a_clock_too_coarse_to_tell_gives_no_rate():
    stuck = [Token(index, 0, "", 0.0, 0.0, None) for index in range(3)]
    assert (prefill_tok_s(stuck, 3), decode_tok_s(stuck)) == (None, None)


def test_energy_per_token_and_share_of_the_roof():
    assert joules_per_token(10.0, 5) == 2.5
    assert joules_per_token(None, 5) is None
    assert share_of_roof(2_000_000_000, 10.0, 40.0) == 0.5
    assert share_of_roof(2_000_000_000, None, 40.0) is None
    assert share_of_roof(2_000_000_000, 10.0, None) is None


def test_the_summary_is_exactly_the_json_object():
    table = summarize(TOKENS, 8, load_s=0.5, weight_bytes_per_token=7).to_dict()
    assert list(table) == KEYS
    assert {**table, "peak_rss_bytes": None} == {
        "text": "ab" * 5, "tokens": 5, "prompt_tokens": 8, "reused_tokens": 0, "prefill_tok_s": 4.0,
        "decode_tok_s": 2.0, "ttft_s": 2.5, "load_s": 0.5, "peak_rss_bytes": None, "weight_bytes_per_token": 7,
        "energy": None}
    assert json.loads(json.dumps(table)) == table


def test_the_summary_of_nothing_is_not_known():
    table = summarize([], 8).to_dict()
    assert (table["text"], table["tokens"]) == ("", 0)
    assert [table[key] for key in ("prefill_tok_s", "decode_tok_s", "ttft_s")] == [None] * 3


BLOCK = [TensorSpec("blocks.0.attn_norm.weight", "F32", (8,)), TensorSpec("blocks.0.q.qweight", "U8", (8, 4)),
         TensorSpec("blocks.0.q.scales", "F16", (8, 1)), TensorSpec("blocks.0.q.zero_points", "U8", (8, 1)),
         TensorSpec("blocks.0.q.bias", "F32", (8,)), TensorSpec("final_norm.weight", "F32", (8,))]
BLOCK_BYTES = 8 * 4 + 8 * 4 + 8 * 2 + 8 + 8 * 4 + 8 * 4
SHARED = [TensorSpec("embed.weight", "F16", (100, 8)), TensorSpec("rope.cos", "F32", (64, 4)),
          TensorSpec("rope.sin", "F32", (64, 4))]


@pytest.mark.parametrize(("head", "expected"), [
    ([], BLOCK_BYTES + 100 * 8 * 2),
    ([TensorSpec("head.weight", "F16", (100, 8))], BLOCK_BYTES + 8 * 2 + 100 * 8 * 2),
    ([TensorSpec("head.qweight", "U8", (100, 8)), TensorSpec("head.scales", "F16", (100, 1)),
      TensorSpec("head.zero_points", "U8", (100, 1))], BLOCK_BYTES + 8 * 2 + 100 * (8 + 2 + 1)),
], ids=["tied", "float16", "int8"])
def test_bytes_read_per_token(tmp_path, head, expected):
    with WeightsWriter(tmp_path / "weights.safetensors", [*SHARED, *BLOCK, *head]) as writer:
        assert weight_bytes_per_token(writer.layout) == expected


PEAK = """
from edge_awq.memory import peak_rss_bytes
before = peak_rss_bytes()
block = bytearray(b"1") * (200 << 20)
used = peak_rss_bytes()
del block
print(before, used, peak_rss_bytes())
"""


def test_memory_of_the_machine(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    123 kB\n")
    assert meminfo_bytes("MemAvailable", tmp_path / "meminfo") == 123 * 1024
    assert meminfo_bytes("MemFree", tmp_path / "meminfo") is meminfo_bytes("MemTotal", tmp_path / "missing") is None
    assert 0 < available_bytes() <= meminfo_bytes("MemTotal")


def test_peak_memory_is_of_this_process_alone_and_in_bytes():
    """Started by a process that is larger: Linux' ru_maxrss would report that one's."""
    parent = np.ones(300 << 20, np.uint8)
    found = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True).stdout
    before, used, after = map(int, found.split())
    assert parent.all()
    assert 5 << 20 < before < 250 << 20  # an interpreter with numpy and tokenizers
    assert 190 << 20 < used - before < 230 << 20
    assert after >= used - (1 << 20)  # the kernel sums its counters lazily, by some pages per CPU
