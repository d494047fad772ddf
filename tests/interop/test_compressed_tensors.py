"""Checkpoints that compressed-tensors itself packs."""

import json

import numpy as np
import pytest
import torch
from models import assert_refused, command, make_model
from published import save
from safetensors.torch import load_file

from edge_awq.interop.block import import_block
from edge_awq.model.decoder import load_decoder
from quantized import float_weights

pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")

from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

SCHEMES = {
    "symmetric": {"strategy": "group", "group_size": 64, "symmetric": True},
    "asymmetric": {"strategy": "group", "group_size": 128, "symmetric": False},
    "channel": {"strategy": "channel", "symmetric": False},
}
LINEARS = {"q": "self_attn.q_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj"}


def config_of(scheme, **changes):
    weights = {"num_bits": 4, "type": "int", **SCHEMES[scheme], **changes}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def compress(folder, name):
    """Quantize the float checkpoint in ``folder`` with compressed-tensors; returns what it decompresses, by module."""
    args = QuantizationArgs(num_bits=4, type="int", **SCHEMES[name])
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for stored in [stored for stored in tensors if stored.endswith("_proj.weight")]:
        module, weight = stored.removesuffix(".weight"), tensors.pop(stored).float()
        groups = weight.unflatten(1, (-1, SCHEMES[name].get("group_size", weight.shape[1])))
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        scale = scale.half()
        packed = PackedQuantizationCompressor.compress(
            {"weight": weight, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}, scheme)
        wide = {**packed, "weight_scale": scale.float()}
        meant[module] = PackedQuantizationCompressor.decompress(wide, scheme)["weight"]
        tensors |= {f"{module}.{part}": tensor for part, tensor in packed.items()}
    save(folder, tensors, config_of(name))
    return meant


@pytest.mark.parametrize("name", SCHEMES)
def test_the_same_weights_to_the_bit(tmp_path, name):
    make_model(tmp_path)
    meant = compress(tmp_path, name)
    decoder = load_decoder(tmp_path)
    block = import_block(decoder, 1)
    weights = float_weights(block.tensors, decoder.config)
    for ours, theirs in LINEARS.items():
        assert np.array_equal(weights[f"{ours}.weight"], meant[f"model.layers.1.{theirs}"])
    assert set(block.report.imported) == {"q", "k", "v", "o", "gate", "up", "down"}


def test_build_and_run(tmp_path):
    make_model(tmp_path / "model")
    compress(tmp_path / "model", "asymmetric")
    assert command("build", tmp_path / "model", "-o", tmp_path / "m.bundle").code == 0
    assert command("run", tmp_path / "m.bundle", "-p", "The", "-n", 3).code == 0
    assert "import of compressed-tensors pack-quantized" in command("inspect", tmp_path / "m.bundle").out


@pytest.mark.parametrize(("changes", "words"), [
    ({"num_bits": 8}, ["group_0: 8 bits"]),
    ({"type": "float"}, ["of type 'float'"]),
    ({"strategy": "tensor"}, ["strategy 'tensor'"]),
    ({"group_size": 32}, ["group size 32"]),
    ({"symmetric": False}, ["weight_zero_point' is missing"]),
], ids=["bits", "type", "strategy", "group", "zero-points"])
def test_schemes_that_we_do_not_read(tmp_path, changes, words):
    make_model(tmp_path)
    compress(tmp_path, "symmetric")
    save(tmp_path, load_file(tmp_path / "model.safetensors"), config_of("symmetric", **changes))
    assert_refused(command("build", tmp_path, "-o", tmp_path / "m.bundle"), *words)


def second_group(**changes):
    config = config_of("symmetric")
    config["config_groups"]["group_1"] = {"targets": ["re:.*down.*"], "weights": {
        "num_bits": 4, "type": "int", **SCHEMES["symmetric"], **changes}}
    return config


@pytest.mark.parametrize(("config", "words"), [
    (second_group(num_bits=8), ["group_1: 8 bits"]),
    (second_group(group_size=128), ["group_0, group_1 differ"]),
    (config_of("symmetric") | {"format": "marlin-24"}, ["format 'marlin-24'"]),
    (config_of("symmetric") | {"transform_config": {"a": 1}}, ["transform_config"]),
], ids=["mixed-bits", "mixed-groups", "format", "transform"])
def test_configs_that_we_do_not_read(tmp_path, config, words):
    make_model(tmp_path)
    compress(tmp_path, "symmetric")
    save(tmp_path, load_file(tmp_path / "model.safetensors"), config)
    assert_refused(command("build", tmp_path, "-o", tmp_path / "m.bundle"), *words)


def test_a_shape_that_denies_the_packed_values(tmp_path):
    make_model(tmp_path)
    compress(tmp_path, "symmetric")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_shape"] = torch.tensor([256, 64])
    save(tmp_path, tensors, json.loads((tmp_path / "config.json").read_text())["quantization_config"])
    assert_refused(command("build", tmp_path, "-o", tmp_path / "m.bundle"), "up_proj.weight_shape' says [256, 64]")
