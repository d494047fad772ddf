"""For emulated aarch64: the logits of every engine of the folders given, beside each as .npy."""

import json
import sys
from pathlib import Path

import numpy as np

from edge_awq.engine.ort.engine import EngineSettings, OrtEngine


def find_logits(engine: OrtEngine, ids: list[int]) -> np.ndarray:
    """A prompt in ragged chunks, then token by token: [tokens, vocab_size] float32."""
    half = len(ids) // 2
    return np.concatenate([engine.logits(ids[:half]), *(engine.logits([token]) for token in ids[half:])])


def main() -> None:
    ids, folders = json.loads(sys.argv[1]), map(Path, sys.argv[2:])
    for folder in folders:
        for graph in sorted((folder / "engines").glob("*.onnx")):
            engine = OrtEngine(graph, folder / "weights.safetensors", EngineSettings(len(ids), 7))
            np.save(graph.with_suffix(".npy"), find_logits(engine, ids))
            engine.close()


if __name__ == "__main__":
    main()
