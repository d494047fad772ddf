"""The canonical graph as it stands, in both runtimes, against the torch decoder on the very weights that are stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_models import RUNTIMES, relative_l2

from edge_awq.errors import EdgeAwqError
from edge_awq.export.graph import ACTIVATIONS, MLPS, NORMS, POSITIONS, RESIDUALS, build_graph
from edge_awq.model import config as model_config
from edge_awq.model.decoder import load_decoder, logits
from edge_awq.model.family import WORDS
from edge_awq.weights import read_layout
from stored import StoredDecoder, store
from tiny import ARCHITECTURES, UNGROUPED, make_tiny

# Both sides compute in float32, in another order: the decoder's own limit against transformers.
LIMIT = 1e-5
TOKENS, CONTEXT = 20, 32


def export(folder: Path, architecture: str, bits: int = 4, head_bits: int = 4, **changes) -> StoredDecoder:
    """A checkpoint, its weights file and its model.onnx in ``folder``; returns the decoder that they stand for."""
    make_tiny(folder, architecture, **changes)
    weights = folder / "weights.safetensors"
    decoder = store(load_decoder(folder), weights, bits, head_bits)
    onnx.save(build_graph(decoder.family, decoder.config, read_layout(weights)), model_path(folder))
    onnx.checker.check_model(model_path(folder), full_check=True)
    return decoder


def model_path(folder: Path) -> str:
    return str(folder / "model.onnx")


class OnnxDecoder:
    """Runs a model.onnx call by call; rows of the cache that hold no token are NaN."""

    def __init__(self, decoder: StoredDecoder, runtime: str) -> None:
        config = decoder.config
        self.run = RUNTIMES[runtime](model_path(decoder.folder))
        self.length = 0
        shape = (1, config.num_kv_heads, CONTEXT, config.head_size)
        self.cache = [np.full(shape, np.nan, np.float32) for _ in range(2 * config.num_layers)]
        self.cache_names = [f"past_{part}_{i}" for i in range(config.num_layers) for part in ("key", "value")]

    def __call__(self, ids: torch.Tensor, num_logits: int) -> np.ndarray:
        """Logits [1, num_logits, vocab_size] of the newest of ids [1, tokens]."""
        found, *self.cache = self.run({
            "input_ids": ids.numpy(),
            "past_length": np.array([self.length]),
            "num_logits": np.array([num_logits]),
            **dict(zip(self.cache_names, self.cache, strict=True)),
        })
        self.length += ids.shape[1]
        assert found.shape[:2] == (1, num_logits)
        return found


def random_ids(decoder: StoredDecoder) -> torch.Tensor:
    return torch.randint(0, decoder.config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def decoder(request, tmp_path_factory):
    bits = 16 if request.param in UNGROUPED else 4
    return export(tmp_path_factory.mktemp(request.param), request.param, bits, bits)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_prompt_equals_decoder(decoder, runtime):
    ids = random_ids(decoder)
    assert relative_l2(OnnxDecoder(decoder, runtime)(ids, TOKENS), logits(decoder, ids).numpy()) <= LIMIT


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_chunks_then_tokens_equal_decoder(decoder, runtime):
    """Two chunks of a prompt and four single tokens, the logits of the last position of each call."""
    ids = random_ids(decoder)
    model = OnnxDecoder(decoder, runtime)
    ends = [9, 16, 17, 18, 19, 20]
    starts = [0, *ends[:-1]]
    found = np.concatenate([model(ids[:, i:j], num_logits=1) for i, j in zip(starts, ends, strict=True)], axis=1)
    assert relative_l2(found, logits(decoder, ids)[:, np.array(ends) - 1].numpy()) <= LIMIT


# name -> (architecture, bits, head bits, what differs)
VARIANTS = {
    "head4-tied": ("qwen2", 4, 4, {}),
    "head8": ("llama3", 4, 8, {}),
    "head8-tied": ("qwen2", 4, 8, {}),
    "head16": ("llama3", 4, 16, {}),
    "head16-tied": ("qwen2", 4, 16, {}),
    "fp16": ("llama-biased", 16, 16, {}),
    "fp16-tied": ("qwen2", 16, 16, {}),
    "odd-groups": ("llama3", 4, 8, {"hidden_size": 192, "intermediate_size": 320}),
    "gelu": ("llama2", 4, 4, {"hidden_act": "gelu"}),
    "gelu-tanh": ("llama2", 4, 4, {"hidden_act": "gelu_new"}),
    "relu": ("llama2", 4, 4, {"hidden_act": "relu"}),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_storing_equals_decoder(variant, runtime, tmp_path):
    architecture, bits, head_bits, changes = VARIANTS[variant]
    decoder = export(tmp_path, architecture, bits, head_bits, **changes)
    ids = random_ids(decoder)
    assert relative_l2(OnnxDecoder(decoder, runtime)(ids, TOKENS), logits(decoder, ids).numpy()) <= LIMIT


@pytest.mark.parametrize("variant", ["head8-tied", "head16-tied", "fp16", "odd-groups"])
def test_every_stored_tensor_is_used_where_it_lies(variant, tmp_path):
    """Nothing large is in model.onnx, and each byte range named there is one whole stored tensor."""
    architecture, bits, head_bits, changes = VARIANTS[variant]
    export(tmp_path, architecture, bits, head_bits, **changes)
    layout = read_layout(tmp_path / "weights.safetensors")
    model = onnx.load(model_path(tmp_path), load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == "weights.safetensors"
            found[tensor.name] = (int(place["offset"]), int(place["length"]))
        else:
            assert tensor.ByteSize() < 100
    assert found == {name: (tensor.offset, tensor.nbytes) for name, tensor in layout.items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One decoder where any will do."""
    return export(tmp_path_factory.mktemp("small"), "llama3")


def test_names_are_readable(small):
    model = onnx.load(model_path(small.folder), load_external_data=False)
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert len(kinds) == len(model.graph.node)
    for index in range(small.config.num_layers):
        assert kinds[f"blocks.{index}.attention"] == "CachedAttention"
        assert all(kinds[f"blocks.{index}.{name}"] == "Int4MatMul" for name in small.family.linears)
        assert all(kinds[f"blocks.{index}.{name}"] == "RMSNormalization" for name in small.family.norms)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["edge_awq.contract_version"] == "2"


STORED = (
    "embed.weight",
    "blocks.1.down.qweight",
    "blocks.0.k.scales",
    "blocks.0.o.zero_points",
    "blocks.1.mlp_norm.weight",
    "rope.sin",
    "head.qweight",
    "head.zero_points",
)


@pytest.mark.parametrize("name", STORED)
def test_missing_tensor_is_named(small, name):
    layout = read_layout(small.folder / "weights.safetensors")
    del layout[name]
    missing = name.replace("qweight", "weight")  # where no quantized matrix is stored, a plain one must be
    with pytest.raises(EdgeAwqError, match=f"tensor '{missing}' is missing"):
        build_graph(small.family, small.config, layout)


@pytest.mark.parametrize("name", STORED)
def test_shape_that_contradicts_the_config_is_named(small, name):
    layout = read_layout(small.folder / "weights.safetensors")
    rows, *width = layout[name].shape
    layout[name] = dataclasses.replace(layout[name], shape=(rows - 1, *width))
    with pytest.raises(EdgeAwqError, match=f"tensor '{name}' has shape"):
        build_graph(small.family, small.config, layout)


def test_every_word_of_a_family_file_can_be_exported():
    tables = {"norm": NORMS, "mlp": MLPS, "position": POSITIONS, "residual": RESIDUALS}
    assert {word: set(table) for word, table in tables.items()} == {word: set(names) for word, names in WORDS.items()}
    assert set(ACTIVATIONS) == set(model_config.ACTIVATIONS.values())
