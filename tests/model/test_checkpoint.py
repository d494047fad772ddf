"""Checkpoints: every way to store them, and every way to break them."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_awq.errors import EdgeAwqError
from edge_awq.model.decoder import load_decoder, logits
from tiny import make_tiny

IDS = torch.tensor([[5, 7, 11, 13]])
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    make_tiny(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def rewrite(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder, save, suffix, single):
    """Split the weights over two files with an index, as transformers does."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{single}-0000{number}-of-00002.{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / f"{single}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["single-bin", "old-bin", "sharded-safetensors", "sharded-bin", "bfloat16"])
def test_every_layout_gives_the_same_logits(folder, layout):
    expected = logits(load_decoder(folder), IDS)
    tensors = tensors_of(folder)
    if layout == "sharded-safetensors":
        shard(folder, save_file, "safetensors", "model")
    elif layout == "sharded-bin":
        shard(folder, torch.save, "bin", "pytorch_model")
    elif layout == "bfloat16":
        rewrite(folder, {name: tensor.bfloat16() for name, tensor in tensors.items()})
        rounded = logits(load_decoder(folder), IDS)
        assert not torch.equal(rounded, expected)
        assert (rounded - expected).norm() < 0.05 * expected.norm()  # bfloat16 keeps 8 bits: 2^-9 per weight
        return
    else:
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin",
                   _use_new_zipfile_serialization=layout == "single-bin")
    assert torch.equal(logits(load_decoder(folder), IDS), expected)


def refusal(folder):
    with pytest.raises(EdgeAwqError) as caught:
        decoder = load_decoder(folder)
        for index in range(decoder.config.num_layers):
            decoder.block(index)
    assert caught.value.hint
    return caught.value.message


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)


def test_half_downloaded_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "not a whole safetensors file" in refusal(folder)


def test_half_downloaded_bin(folder):
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "not a whole PyTorch file" in refusal(folder)


def test_missing_shard(folder):
    shard(folder, save_file, "safetensors", "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder)


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_index_that_points_outside(folder, target):
    shard(folder, save_file, "safetensors", "model")
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"][NORM] = target
    index.write_text(json.dumps(table))
    assert "points outside the folder" in refusal(folder) and NORM in refusal(folder)


def test_index_that_promises_too_much(folder):
    shard(folder, save_file, "safetensors", "model")
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(table))
    assert "'ghost' is named by the index" in refusal(folder)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', '{"weight_map": ["a"]}'])
def test_broken_index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    assert "not a valid shard index" in refusal(folder)


class Evil:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('ran').write_text('code')",))


def test_pickle_that_wants_to_run_code(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({NORM: Evil()}, file)
    assert "was not loaded" in refusal(folder)
    torch.save({NORM: Evil()}, folder / "pytorch_model.bin")
    assert "was not loaded" in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(folder, value):
    tensors = tensors_of(folder)
    tensors[NORM][3] = value
    rewrite(folder, tensors)
    assert NORM in refusal(folder) and "1 values that are NaN or infinite" in refusal(folder)


def test_tensor_of_another_shape_than_config_says(folder):
    edit_config(folder, intermediate_size=512)
    assert "has shape [256, 128], but config.json says [512, 128]" in refusal(folder)


def test_missing_tensor(folder):
    tensors = tensors_of(folder)
    del tensors[NORM]
    rewrite(folder, tensors)
    assert f"tensor '{NORM}' is missing" in refusal(folder)


def test_more_layers_in_config_than_in_the_weights(folder):
    edit_config(folder, num_hidden_layers=3)
    assert "model.layers.2" in refusal(folder)


@pytest.mark.parametrize("changes, word", [
    ({"model_type": "mamba"}, "model type 'mamba'"),
    ({"hidden_size": -1}, "hidden_size = -1"),
    ({"hidden_size": "many"}, "hidden_size = 'many'"),
    ({"vocab_size": None}, "vocab_size = None"),
    ({"num_key_value_heads": 3}, "4 query heads do not share 3 KV heads"),
    ({"hidden_act": "snake"}, "activation 'snake'"),
    ({"hidden_act": ["silu"]}, "activation '['silu']'"),
    ({"rope_parameters": {"rope_type": ["llama3"]}}, "rope scaling '['llama3']'"),
    ({"rope_parameters": {"rope_type": "spiral"}}, "rope scaling 'spiral'"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "lacks or misstates"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small'"),
    ({"sliding_window": "wide"}, "sliding_window = 'wide'"),
    ({"sliding_window": 4, "layer_types": ["full_attention"]}, "2 entries are expected"),
    ({"sliding_window": 4, "layer_types": 2}, "layer_types = 2, 2 entries"),
    ({"sliding_window": 4, "layer_types": ["full_attention", "linear_attention"]}, "'linear_attention', which is not"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantized already"),
])
def test_config_that_cannot_be(folder, changes, word):
    edit_config(folder, **changes)
    assert word in refusal(folder)


def test_unknown_family_lists_the_known_ones(folder):
    edit_config(folder, model_type="mamba")
    with pytest.raises(EdgeAwqError) as caught:
        load_decoder(folder)
    assert "llama" in caught.value.hint and "qwen2" in caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_config_that_is_not_json(folder, content):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refusal(folder)
