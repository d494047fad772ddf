"""Random checkpoints: the exact shape, sharded as the hub's are, and numbers of a sane size."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from edge_awq.bench.random_model import make_random_model, with_blocks
from edge_awq.errors import EdgeAwqError
from edge_awq.model.config import parse_config
from edge_awq.model.decoder import load_decoder, logits
from edge_awq.model.family import find_family
from edge_awq.shapes import Shape, find_shape, shape_names

SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 600, "max_position_embeddings": 128}


# What is small in shapes of other families, whose keys SMALL does not have.
ALSO_SMALL = {
    "mpt-7b": {"d_model": 128, "n_layers": 3, "n_heads": 4, "max_seq_len": 128},
    "falcon-7b": {"ffn_hidden_size": 256},
    "opt-1.3b": {"ffn_dim": 256},
    "phi-3-mini": {"pad_token_id": 0},
    "gemma-3-1b": {"head_dim": 32, "sliding_window": 8, "sliding_window_pattern": 2},
}


@pytest.fixture(scope="module", params=["tinyllama-1.1b", "qwen2.5-0.5b", "mistral-7b", "mpt-7b", "falcon-7b",
                                        "phi-3-mini", "opt-1.3b", "gemma-3-1b"])
def model_folder(request, tmp_path_factory):
    shape = find_shape(request.param)
    small = Shape(shape.name, {**shape.config, **SMALL, **ALSO_SMALL.get(shape.name, {})}, shape.biases)
    return make_random_model(tmp_path_factory.mktemp("random") / "model", small)


def test_transformers_loads_it_and_computes_the_same(model_folder):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    ids = torch.randint(0, SMALL["vocab_size"], (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).logits
    found = logits(load_decoder(model_folder), ids)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5  # the bound of tests/model
    assert 0.3 < float(found.std()) < 3  # a normed x against rows of N(0, 1/K) has unit variance


def test_a_block_is_a_shard(model_folder):
    index = json.loads((model_folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    blocks = [{file for name, file in index["weight_map"].items() if f".{i}." in name} for i in range(3)]
    assert [len(files) for files in blocks] == [1, 1, 1]
    assert len(set.union(*blocks)) == 3
    assert {path.name for path in model_folder.glob("*.safetensors")} == set(index["weight_map"].values())


def test_tokenizer_stays_within_the_vocabulary(model_folder):
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    assert max(tokenizer.get_vocab().values()) < SMALL["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("import os\n").ids) == "import os\n"


def test_seed_decides_the_weights(tmp_path):
    shape = Shape("small", {**find_shape("tinyllama-1.1b").config, **SMALL, "num_hidden_layers": 1})
    seeds = {"first": 0, "same": 0, "other": 1}
    first, same, other = (make_random_model(tmp_path / name, shape, seed) for name, seed in seeds.items())
    shard = "model-00003-of-00003.safetensors"
    assert (first / shard).read_bytes() == (same / shard).read_bytes() != (other / shard).read_bytes()


@pytest.mark.parametrize("name", shape_names())
def test_a_shape_of_fewer_blocks_is_the_same_otherwise(name):
    whole, two = find_shape(name).config, with_blocks(find_shape(name), 2).config
    before, after = (parse_config(config, find_family(config)) for config in (whole, two))
    assert after.num_layers == 2 and [key for key in whole if whole[key] != two[key]] in (["num_hidden_layers"],
                                                                                          ["n_layers"])
    for impossible in (0, before.num_layers + 1):
        with pytest.raises(EdgeAwqError, match=f"{name} with {impossible} blocks") as raised:
            with_blocks(find_shape(name), impossible)
        assert f"it has {before.num_layers}:" in raised.value.hint


@pytest.mark.parametrize("name", shape_names())
def test_every_shape_is_a_config_that_we_read(name):
    config = find_shape(name).config
    decoder = parse_config(config, find_family(config))
    assert decoder.q_size == decoder.hidden_size or decoder.head_size == config["head_dim"]


# Parameters as published with the models.
@pytest.mark.parametrize(("name", "billions"), [
    ("tinyllama-1.1b", 1.100), ("llama-2-7b", 6.738), ("llama-2-13b", 13.016), ("llama-3.2-1b", 1.236),
    ("llama-3.1-8b", 8.030), ("mistral-7b", 7.242), ("qwen2.5-0.5b", 0.494), ("qwen2.5-1.5b", 1.544),
    ("mpt-7b", 6.649), ("falcon-7b", 7.217), ("qwen3-0.6b", 0.596), ("phi-3-mini", 3.821),
    ("opt-1.3b", 1.316), ("pythia-1.4b", 1.415), ("gemma-2-2b", 2.614), ("gemma-3-1b", 1.000),
])
def test_parameter_counts_are_the_published_ones(name, billions):
    shape = find_shape(name)
    family = find_family(shape.config)
    config = parse_config(shape.config, family)
    sizes = {linear: config.linear_shape(linear) for linear in (*family.linears, "embed", "head")}
    norms = {norm: config.norm_size(norm) for norm in (*family.norms, "final_norm")}
    biases = {name: sizes[name][0] if name in sizes else norms[name] for name in shape.biases}
    outer = norms.pop("final_norm") + biases.pop("final_norm", 0)
    block = sum(sizes[linear][0] * sizes[linear][1] for linear in family.linears)
    block += sum(norms.values()) + sum(biases.values())
    tables = 1 if config.tied_head else 2
    if "positions" in family.names:
        outer += (config.max_positions + config.position_offset) * config.hidden_size
    total = config.num_layers * block + tables * config.vocab_size * config.hidden_size + outer
    assert round(total / 1e9, 3) == billions


def test_unknown_shape_lists_the_known_ones():
    with pytest.raises(EdgeAwqError, match="'gpt-9'") as raised:
        find_shape("gpt-9")
    assert "tinyllama-1.1b" in raised.value.hint
