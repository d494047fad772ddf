"""Tiny models as a build leaves them: weights in a build's order, canonical graph, and the decoder they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession

from edge_awq.engine.ort.session import SessionSettings, create_session
from edge_awq.export.graph import build_graph
from edge_awq.layout import plan_layout
from edge_awq.model.decoder import load_decoder
from edge_awq.target import QuantSpec
from edge_awq.weights import read_layout, read_tensor
from stored import StoredDecoder, store, write_weights
from tiny import make_tiny

GROUP_SIZE = 64


def build(folder: Path, architecture: str, bits: int = 4, head_bits: int = 8, symmetric: bool = False,
          **changes: Any) -> StoredDecoder:
    """Put a tiny checkpoint into ``folder``/source, and its weights file and model.onnx into ``folder``."""
    make_tiny(folder / "source", architecture, **changes)
    return build_from(folder, bits, head_bits, symmetric)


def build_from(folder: Path, bits: int = 4, head_bits: int = 8, symmetric: bool = False) -> StoredDecoder:
    """The same for a checkpoint that lies in ``folder``/source already."""
    source = load_decoder(folder / "source")
    unordered = folder / "unordered.safetensors"
    decoder = store(source, unordered, bits, head_bits, GROUP_SIZE, symmetric)
    layout = read_layout(unordered)
    precision = {4: "w4a16", 16: "fp16"}[bits]
    planned = plan_layout(source, precision, QuantSpec(GROUP_SIZE, symmetric, head_bits), source.config.max_positions)
    assert {spec.name for spec in planned} == set(layout)
    tensors = {spec.name: np.array(read_tensor(unordered, layout[spec.name])) for spec in planned}
    unordered.unlink()
    ordered = write_weights(folder / "weights.safetensors", tensors)
    onnx.save(build_graph(decoder.family, decoder.config, ordered), folder / "model.onnx")
    return decoder


def canonical(folder: Path) -> onnx.ModelProto:
    """The graph as it was exported."""
    return onnx.load(folder / "model.onnx", load_external_data=False)


def random_ids(count: int, vocab_size: int = 131, seed: int = 1) -> list[int]:
    """Token ids of the tiny models' vocabulary."""
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def run_graph(model: onnx.ModelProto, folder: Path, decoder: StoredDecoder, chunks: list[list[int]]) -> np.ndarray:
    """Logits [tokens, vocab_size] of the chunks run one after the other, whatever inputs of ours the graph has."""
    session = create_session(model.SerializeToString(), folder / "weights.safetensors", SessionSettings(threads=1))
    config, capacity = decoder.config, sum(map(len, chunks)) + 3
    shape = (1, config.num_kv_heads, capacity, config.head_size)
    cache = {f"{part}_{layer}": np.zeros(shape, np.float32) for layer in range(config.num_layers) for part in
             ("key", "value")}
    logits, past = [], 0
    for ids in chunks:
        feeds = {**_feeds(decoder, ids, past), **{f"past_{name}": value for name, value in cache.items()}}
        found, *present = session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
        cache = dict(zip([name.removeprefix("present_") for name in _outputs(session)[1:]], present, strict=True))
        logits.append(found[0])
        past += len(ids)
    return np.concatenate(logits)


def _outputs(session: InferenceSession) -> list[str]:
    return [value.name for value in session.get_outputs()]


def _feeds(decoder: StoredDecoder, ids: list[int], past: int) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.array([ids]),
        "embedded": decoder.embed()[torch.tensor([ids])].numpy(),
        "past_length": np.array([past]),
        "num_logits": np.array([len(ids)]),
        "last_position": np.array([past + len(ids) - 1], np.int32),
        "total_length": np.array([past + len(ids)], np.int32),
    }


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """Length of the error over length of the expectation, in float64."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
