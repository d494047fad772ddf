"""Tiny models of every family for the TensorRT lowering, and what its tests ask of a lowered graph."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

TESTS = Path(__file__).resolve().parents[2]
for folder in (TESTS / "engine", TESTS / "plugins", TESTS.parent / "scripts"):
    sys.path.insert(0, str(folder))

from built import build, canonical, random_ids, relative_l2, run_graph  # noqa: E402
from library_harness import Device, KernelError, built_library  # noqa: E402
from library_harness import folder as builds  # noqa: E402

from edge_awq.engine.trt.lower import Lowered, LoweringOptions, lower  # noqa: E402
from edge_awq.engine.trt.names import DOMAIN  # noqa: E402
from edge_awq.engine.trt.reference import LoweredReference  # noqa: E402
from edge_awq.export.graph import build_graph  # noqa: E402
from edge_awq.model.config import DecoderConfig  # noqa: E402
from edge_awq.shapes import find_shape  # noqa: E402
from random_bundle import Decoder, planned_layout  # noqa: E402
from stored import StoredDecoder  # noqa: E402
from tiny import ARCHITECTURES, UNGROUPED  # noqa: E402

# Kernels have head sizes from 64 on; most tiny models have smaller ones.
WIDE = {"head_dim": 64}
TWO_HEADS = {"num_attention_heads": 2}
ONE_KV_HEAD = {**TWO_HEADS, "num_key_value_heads": 1}
HEADS = {
    **dict.fromkeys(("llama2", "llama3", "llama-linear-rope", "llama-yarn", "llama-biased", "tinyllama", "mistral",
                     "mistral-full", "qwen3-window", "gemma2", "gemma3"), WIDE),
    **dict.fromkeys(("qwen2", "qwen2-window", "phi3-partial", "phi3-longrope"), ONE_KV_HEAD),
    **dict.fromkeys(("mpt-clipped", "falcon-biased", "gpt-neox-sequential", "opt", "opt-gelu"), TWO_HEADS),
    "phi3": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256},
    "falcon-40b": {"num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 256},
    "falcon-11b": {"num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 256},
    "falcon-71-heads": {"num_attention_heads": 2, "hidden_size": 128},
}
LONGEST = {"phi3-longrope": {"rope_parameters": {
    **ARCHITECTURES["phi3-longrope"][1]["rope_parameters"], "short_factor": [1.0 + i / 32 for i in range(32)],
    "long_factor": [2.0 + i / 8 for i in range(32)]}}}
CHUNKS = [random_ids(5), random_ids(1, seed=2), random_ids(1, seed=3), random_ids(8, seed=4)]
CONTEXT = sum(map(len, CHUNKS))


def build_tiny(folder: Path, architecture: str, bits: int | None = None, head_bits: int = 8,
               **changes: object) -> StoredDecoder:
    """A tiny model whose head size a kernel has, as a build leaves it."""
    heads = HEADS.get(architecture, {}) | LONGEST.get(architecture, {})
    bits = bits or (16 if architecture in UNGROUPED else 4)
    return build(folder, architecture, bits, 16 if bits == 16 else head_bits, **(heads | changes))


def run_lowered(lowered: Lowered, folder: Path, exact: bool = False) -> np.ndarray:
    """Logits [tokens, vocab_size] of CHUNKS, one after the other."""
    reference = LoweredReference(lowered, folder / "weights.safetensors", CONTEXT, exact)
    return np.concatenate([reference(ids)["logits"][0] for ids in CHUNKS])


class ReferenceEngine:
    """The reference behind the protocol of engines; ``ran`` counts the tokens that it ran."""

    def __init__(self, folder: Path, options: LoweringOptions, context: int = 128) -> None:
        self.reference = LoweredReference(lower(canonical(folder), options), folder / "weights.safetensors", context)
        self.context, self.vocab_size, self.ran = context, 131, 0

    @property
    def length(self) -> int:
        return self.reference.length

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        return self.logits(ids)[-1]

    def step(self, token_id: int) -> np.ndarray:
        return self.prefill([token_id])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self.ran += len(ids)
        return np.concatenate([self.reference(ids[start : start + 4])["logits"][0] for start in range(0, len(ids), 4)])

    def truncate(self, length: int) -> None:
        self.reference.length = length


def graph_of_shape(name: str, head_bits: int = 4) -> tuple[onnx.ModelProto, DecoderConfig]:
    """The canonical graph of a known model at its full size, as if its weights file were there; and its config."""
    decoder = Decoder.of(find_shape(name), "w4a16", head_bits)
    return build_graph(decoder.family, decoder.config, planned_layout(decoder.specs())), decoder.config


def plugins(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that plugins compute."""
    return [node for node in model.graph.node if node.domain == DOMAIN]


def half_limit(model: onnx.ModelProto) -> float:
    """How far a lowered graph may be from the same without roundings, as relative_l2.

    A plugin rounds its result to float16, and before it rows that it normalizes, or queries and keys. Each rounding
    moves a vector by at most 2 ** -11 of its length, and the errors do not know of each other.
    """
    return math.sqrt(2 * len(plugins(model))) * 2.0**-11


__all__ = ["ARCHITECTURES", "CHUNKS", "CONTEXT", "TESTS", "Device", "KernelError", "ReferenceEngine", "build_tiny",
           "builds", "built_library", "canonical", "graph_of_shape", "half_limit", "plugins", "random_ids",
           "relative_l2", "run_graph", "run_lowered"]
