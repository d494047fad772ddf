"""Calibration without data: the model samples its own text, which calibrates as well as real text does."""

from __future__ import annotations

import json
import math

import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.memory import available_bytes
from edge_awq.model.decoder import Decoder, KvCache, embed_tokens, head_logits, run_block
from edge_awq.progress import Progress

USE_TEXT = "calibrate with a text file or with the built-in texts"
FLOAT_BYTES = 4
MEMORY_SHARE = 0.8  # of what is available; the rest is for activations and for everybody else


def sample_own_text(decoder: Decoder, sequences: int, tokens: int, seed: int, progress: Progress) -> torch.Tensor:
    """Sample ids [sequences, tokens] at temperature 1, each sequence from BOS on; the same seed gives the same ids.

    Raises:
        EdgeAwqError: the model names no BOS or EOS token, or all its blocks do not fit into memory at once.
    """
    _check_memory(decoder, sequences * tokens)
    generator = torch.Generator().manual_seed(seed)
    config = decoder.config
    tables, head, vectors = decoder.embedding(), decoder.head(), decoder.final_vectors()
    blocks = [decoder.block(index) for index in range(config.num_layers)]
    cache = KvCache()
    ids = torch.full((sequences, 1), _first_token(decoder))
    with progress.track("sample text", tokens, 1) as advance:
        while ids.shape[1] < tokens:
            x = embed_tokens(config, tables, ids[:, -1:], past=ids.shape[1] - 1)
            for index, weights in enumerate(blocks):
                x = run_block(config, index, weights, x, cache)
            logits = head_logits(config, x[:, -1], vectors, head)
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
            advance(1)
    return ids


def _first_token(decoder: Decoder) -> int:
    """BOS, or EOS for models that separate texts with it alone."""
    path = decoder.folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("bos_token_id", "eos_token_id"):
        found = config.get(key)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int) and 0 <= found < decoder.config.vocab_size:
            return found
    raise EdgeAwqError(f"{path}: neither bos_token_id nor eos_token_id is a token of the model", hint=USE_TEXT)


def _check_memory(decoder: Decoder, positions: int) -> None:
    config = decoder.config
    per_block = sum(math.prod(config.linear_shape(name)) for name in decoder.family.linears)
    outer = math.prod(config.linear_shape("embed")) * (1 if decoder.tied_head else 2)
    cached = 2 * positions * config.kv_size * config.num_layers
    needed = FLOAT_BYTES * (per_block * config.num_layers + outer + cached)
    available = available_bytes()
    if available is not None and needed > MEMORY_SHARE * available:
        raise EdgeAwqError(
            f"sampling text from the model needs {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are available",
            hint=USE_TEXT,
        )
