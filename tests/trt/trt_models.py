"""Tiny models of three families for engines built by TensorRT, and what they must compute. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from edge_awq.bundle import Bundle
from edge_awq.engine.trt.draft import LoweringOptions
from edge_awq.engine.trt.lower import lower
from edge_awq.engine.trt.names import DOMAIN
from edge_awq.shapes import Shape
from edge_awq.target import Limits, find_target
from random_bundle import Decoder, make_random_bundle

CONTEXT, CHUNK, PROMPT, STEPS = 160, 32, 45, 64  # a prompt is more than one chunk, and its rest more than a decode pass
VOCABULARY = 131  # odd on purpose
HALF_ROUNDING = 2.0**-11

SHAPES = {
    "llama": Shape("llama", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 384,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}),
    "mpt": Shape("mpt", {
        "architectures": ["MPTForCausalLM"], "model_type": "mpt", "d_model": 128, "expansion_ratio": 3, "n_layers": 2,
        "n_heads": 2, "vocab_size": VOCABULARY, "max_seq_len": CONTEXT, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True, "attn_config": {"alibi": True, "alibi_bias_max": 8}}),
    "falcon": Shape("falcon", {
        "architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": 320, "num_hidden_layers": 2,
        "num_attention_heads": 5, "vocab_size": VOCABULARY, "layer_norm_epsilon": 1e-5, "alibi": False, "bias": False,
        "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "tie_word_embeddings": False,
        "max_position_embeddings": CONTEXT}, ("attn_norm", "final_norm")),
}
# The seed of each model's prompt: with these no choice of the 65 tokens is a close call.
MODELS = {"llama-w4a16": 7, "llama-fp16": 7, "mpt-w4a16": 0, "mpt-fp16": 3, "falcon-w4a16": 10, "falcon-fp16": 18}


def make_tiny_bundle(folder: Path, model: str) -> Bundle:
    """The bundle of one of MODELS."""
    name, precision = model.split("-")
    target = dataclasses.replace(find_target("h200"), limits=Limits(CONTEXT, CHUNK))
    decoder = Decoder.of(SHAPES[name], precision, head_bits=8 if name == "mpt" else 4)
    return make_random_bundle(folder / f"{model}.bundle", SHAPES[name], decoder, target, seed=1)


def random_ids(count: int, seed: int = 0) -> list[int]:
    """Token ids."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


class CanonicalModel:
    """A bundle's graph as it stands: onnx runs its function bodies, in float32."""

    def __init__(self, bundle: Bundle) -> None:
        self._evaluator = ReferenceEvaluator(str(bundle.graph))
        graph = onnx.load(bundle.graph, load_external_data=False).graph
        self._outputs = [value.name for value in graph.output]
        self._caches = {value.name: [dim.dim_value or CONTEXT for dim in value.type.tensor_type.shape.dim]
                        for value in graph.input if value.name.startswith(("past_key_", "past_value_"))}
        self.truncate()

    def truncate(self) -> None:
        """Forget everything."""
        self.length, self._cache = 0, {name: np.zeros(shape, np.float32) for name, shape in self._caches.items()}

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids; logits [tokens, vocabulary] after each."""
        feeds = {"input_ids": np.array([ids]), "past_length": np.array([self.length]),
                 "num_logits": np.array([len(ids)])}
        found = dict(zip(self._outputs, self._evaluator.run(None, feeds | self._cache), strict=True))
        self._cache = {name: found[name.replace("past_", "present_", 1)] for name in self._cache}
        self.length += len(ids)
        return found["logits"][0]


class Expected:
    """A prompt, the tokens that follow it greedily, and the logits of every step.

    Attributes:
        prompt: PROMPT tokens.
        logits: [STEPS + 1, vocabulary] after the prompt and after each of ``tokens``.
        tokens: STEPS + 1 likeliest tokens; each but the last is fed.
        limit: see ``rounding_limit``.
    """

    def __init__(self, bundle: Bundle, seed: int) -> None:
        model = CanonicalModel(bundle)
        self.prompt, self.limit = random_ids(PROMPT, seed), rounding_limit(bundle)
        rows = [model(self.prompt)[-1]]
        for _ in range(STEPS):
            rows.append(model([int(rows[-1].argmax())])[-1])
        self.logits, self.tokens = np.array(rows), [int(row.argmax()) for row in rows]

    def close_calls(self) -> int:
        """Steps at which rounding may decide between the two likeliest tokens.

        The two logits are each off by no more than four times what the limit is on average over the vocabulary.
        """
        second, first = np.sort(self.logits, axis=1)[:, -2:].T
        size = np.linalg.norm(self.logits, axis=1) / math.sqrt(VOCABULARY)
        return int((first - second <= 2 * 4 * self.limit * size).sum())


def rounding_limit(bundle: Bundle) -> float:
    """How far logits may be off, as a share of their length (relative L2).

    Each plugin rounds its result to float16, and before it what it normalizes, or queries and keys; TensorRT 8.6 may
    run any other op in float16. A rounding moves a vector by 2 ** -11 of its length at most, and the errors do not know
    of each other.
    """
    graph = lower(onnx.load(bundle.graph, load_external_data=False), LoweringOptions(8)).model.graph
    return math.sqrt(sum(2 if node.domain == DOMAIN else 1 for node in graph.node)) * HALF_ROUNDING


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """Length of the error over length of the expectation, in float64."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
