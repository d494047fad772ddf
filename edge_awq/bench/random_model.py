"""Checkpoints with the exact shape of a known model and random weights, as Hugging Face folders.

For measuring speed and memory without a download. One block or table is in memory at a time, and becomes one shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from edge_awq.bench.hf_folder import hf_config, read_json, replacing, train_tokenizer, write_json, write_text_files
from edge_awq.bench.random_weights import RandomWeights, stored_name
from edge_awq.bench.stdlib_text import read_corpus
from edge_awq.errors import EdgeAwqError
from edge_awq.model.checkpoint import write_tensors
from edge_awq.model.config import parse_config
from edge_awq.model.family import find_family
from edge_awq.progress import Progress, Quiet
from edge_awq.shapes import Shape

RECORD = "random.json"  # what the folder was made from
TOKENIZER_TEXT = 2_000_000  # characters
TOKENIZER_SIZE = 8192  # entries at most; ids beyond them are legal for the model and stand for no text
GAIN_SPREAD = 0.1
DTYPE = torch.bfloat16


def make_random_model(folder: Path, shape: Shape, seed: int = 0, progress: Progress | None = None) -> Path:
    """Write the checkpoint, unless ``folder`` already holds this very one; returns the folder."""
    config = hf_config(shape.config, str(DTYPE).removeprefix("torch."))
    record = {"shape": shape.name, "seed": seed, "config": config}
    if read_json(folder / RECORD) == record:
        return folder
    with replacing(folder) as partial:
        tokenizer = train_tokenizer(read_corpus(TOKENIZER_TEXT).training, min(TOKENIZER_SIZE, config["vocab_size"]))
        write_text_files(partial, config, tokenizer)
        parsed = parse_config(shape.config, find_family(shape.config))
        count = parsed.num_layers + (1 if parsed.tied_head else 2)
        _write_shards(partial, _shards(shape, seed), count, progress or Quiet())
        write_json(partial / RECORD, record)
    return folder


def with_blocks(shape: Shape, blocks: int) -> Shape:
    """The shape with ``blocks`` of its blocks: what one costs is known without room for all of them."""
    key = next(key for key in find_family(shape.config).config["num_layers"] if key in shape.config)
    if not 1 <= blocks <= shape.config[key]:
        raise EdgeAwqError(f"{shape.name} with {blocks} blocks is not possible",
                           hint=f"it has {shape.config[key]}: use 1 to {shape.config[key]}")
    return Shape(shape.name, {**shape.config, key: blocks}, shape.biases)


def _shards(shape: Shape, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of each shard by their names in the checkpoint; they are made when they are asked for."""
    family = find_family(shape.config)
    config = parse_config(shape.config, family)
    generator = torch.Generator().manual_seed(seed)
    random = RandomWeights(family, config, generator, GAIN_SPREAD, shape.biases, DTYPE)
    yield {stored_name(family, name): weight for name, weight in random.outer().items()}
    if not config.tied_head:
        yield {stored_name(family, "head.weight"): random.matrix("head")}
    for index in range(config.num_layers):
        yield random.stored_block(index)


def _write_shards(folder: Path, shards: Iterable[dict[str, torch.Tensor]], count: int, progress: Progress) -> None:
    weight_map: dict[str, str] = {}
    total_bytes = 0
    with progress.track("writing shards", count) as advance:
        for number, tensors in enumerate(shards, 1):
            file = f"model-{number:05}-of-{count:05}.safetensors"
            write_tensors(folder / file, tensors)
            weight_map |= dict.fromkeys(tensors, file)
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
            advance(1)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
