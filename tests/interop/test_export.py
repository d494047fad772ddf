"""A bundle becomes a checkpoint of another tool, which reads the same integers out of it."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from models import assert_refused, command, make_model
from published import AWQ_ORDER, FORMATS, write_checkpoint
from safetensors.torch import load_file, save_file

from edge_awq.bundle import hash_file
from edge_awq.interop import export
from edge_awq.model.decoder import load_decoder, logits
from quantized import float_weights
from stored import StoredDecoder

LINEARS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
           "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
SCHEMES = {"asymmetric": (), "symmetric": ("--symmetric",)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles of one model with a tied head and biases, by scheme; AWQ's scales are folded into the norms."""
    top = tmp_path_factory.mktemp("export")
    make_model(top / "model", "qwen2")
    for scheme, options in SCHEMES.items():
        assert command("build", top / "model", "-o", top / f"{scheme}.bundle", *options).code == 0
    return {scheme: top / f"{scheme}.bundle" for scheme in SCHEMES}


def meant(bundle):
    """The decoder that the bundle's tensors mean, and those float weights."""
    decoder = load_decoder(bundle.parent / "model")
    weights = float_weights(load_file(bundle / "weights.safetensors"), decoder.config)
    return StoredDecoder(decoder.folder, decoder.family, decoder.config, decoder.checkpoint, weights), weights


def unpack_words(words, order):
    """int32 [R, C] -> [R, 8 C]: nibble i of a word is the value order[i]; the inverse of published.words."""
    found = np.empty((len(words), words.shape[1] * 8), np.uint8)
    for nibble, place in enumerate(order):
        found[:, place::8] = (words.view(np.uint32) >> np.uint32(4 * nibble)) & 15
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_autoawq_means_the_same_weights(bundles, tmp_path, scheme):
    result = command("export", bundles[scheme], "--format", "autoawq", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "the head has 8 bits" in result.err and "14 linears" in result.err
    tensors, (_, weights) = load_file(tmp_path / "out" / "model.safetensors"), meant(bundles[scheme])
    for index in range(2):
        for ours, theirs in LINEARS.items():
            module = f"model.layers.{index}.{theirs}"
            q, zero, scale = (tensors[f"{module}.{part}"].numpy() for part in ("qweight", "qzeros", "scales"))
            q, zero = unpack_words(q, AWQ_ORDER).T, unpack_words(zero, AWQ_ORDER).T
            zero, scale = (np.repeat(part.astype(np.float64), q.shape[1] // scale.shape[0], axis=1)
                           for part in (zero, scale.T))
            assert np.array_equal(((q - zero) * scale).astype(np.float32), weights[f"blocks.{index}.{ours}.weight"])
    assert torch.equal(tensors["model.norm.weight"], weights["final_norm.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["modules_to_not_convert"] == ["lm_head"]
    assert config["quantization_config"]["group_size"] == 128 and config["tie_word_embeddings"] is False
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (bundles[scheme] / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_transformers_reads_compressed_tensors(bundles, tmp_path, scheme):
    pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")
    result = command("export", bundles[scheme], "--format", "compressed-tensors", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert any(name.endswith("zero_point") for name in stored) == (scheme == "asymmetric")
    # transformers 5.23 with compressed-tensors 0.20 expects unpacked zero points unless it dequantizes while loading
    options = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, **(options if scheme == "asymmetric" else {})).eval()
    decoder, weights = meant(bundles[scheme])
    weights["head.weight"] = weights["head.weight"].half().float()  # as the export says
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        found, expected = model(ids).logits, logits(decoder, ids)
    # Decompressed when used: float32 sums in another order. Dequantized while loading: weights are rounded to float16,
    # by 2**-11 at most, independently in 14 linears.
    bound = 1e-5 if scheme == "symmetric" else 14**0.5 * 2**-11
    assert float((found - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("form", ["autoawq", "compressed-tensors"])
def test_there_and_back(bundles, tmp_path, form, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 1 << 16)
    assert command("export", bundles["asymmetric"], "--format", form, "-o", tmp_path / "out").code == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not list((tmp_path / "out").glob("shard-*"))
    assert command("build", tmp_path / "out", "-o", tmp_path / "again.bundle").code == 0
    both = bundles["asymmetric"], tmp_path / "again.bundle"
    before, after = (load_file(path / "weights.safetensors") for path in both)
    blocks = [name for name in before if name.startswith("blocks.")]
    assert blocks and all(torch.equal(before[name], after[name]) for name in blocks)


def test_groups_of_two_sizes_become_the_smaller(tmp_path):
    make_model(tmp_path / "model", "llama2", intermediate_size=192)  # down: groups of 64, the others 128
    assert command("build", tmp_path / "model", "-o", tmp_path / "m.bundle", "--recipe", "rtn").code == 0
    assert command("export", tmp_path / "m.bundle", "--format", "autoawq", "-o", tmp_path / "out").code == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    scales = load_file(tmp_path / "m.bundle" / "weights.safetensors")["blocks.0.q.scales"]
    assert torch.equal(tensors["model.layers.0.self_attn.q_proj.scales"], scales.repeat_interleave(2, dim=1).T)
    decoder, (expected, weights) = load_decoder(tmp_path / "out"), meant(tmp_path / "m.bundle")
    weights["head.weight"] = weights["head.weight"].half().float()
    ids = torch.arange(1, 20)[None]
    assert torch.equal(logits(decoder, ids), logits(expected, ids))


def test_bundle_that_was_imported(tmp_path):
    make_model(tmp_path / "model", "llama2")
    linears = write_checkpoint(tmp_path / "model", FORMATS["gptq"], 64)
    assert command("build", tmp_path / "model", "-o", tmp_path / "m.bundle").code == 0
    assert command("export", tmp_path / "m.bundle", "--format", "autoawq", "-o", tmp_path / "out").code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "awq"
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for module, linear in linears.items():
        assert np.array_equal(unpack_words(tensors[f"{module}.qweight"].numpy(), AWQ_ORDER).T, linear.q)
        assert np.array_equal(unpack_words(tensors[f"{module}.qzeros"].numpy(), AWQ_ORDER).T, linear.zero)


@pytest.fixture
def copy(bundles, tmp_path):
    return shutil.copytree(bundles["asymmetric"], tmp_path / "m.bundle")


def test_bundle_of_an_older_version(copy, tmp_path):
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]["config.json"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    config = (copy / "config.json").rename(tmp_path / "config.json")
    arguments = ("export", copy, "--format", "autoawq", "-o", tmp_path / "out")
    assert_refused(command(*arguments), "no config.json", "build the bundle again", "or put")
    shutil.copyfile(config, copy / "config.json")
    assert command(*arguments).code == 0


def test_output_that_exists(copy, tmp_path):
    (tmp_path / "out").mkdir()
    assert_refused(command("export", copy, "--format", "autoawq", "-o", tmp_path / "out"), "exists already")


def test_bundle_of_16_bits(bundles, tmp_path):
    model = next(iter(bundles.values())).parent / "model"
    assert command("build", model, "-o", tmp_path / "m.bundle", "--precision", "fp16").code == 0
    assert_refused(command("export", tmp_path / "m.bundle", "--format", "autoawq", "-o", tmp_path / "out"),
                   "precision fp16", "no 4-bit linears")


def test_tensor_without_a_place_leaves_nothing_behind(copy, tmp_path):
    tensors = load_file(copy / "weights.safetensors")
    save_file(tensors | {"blocks.0.act_scale.weight": torch.full((256,), 0.5)}, copy / "weights.safetensors")
    manifest = json.loads((copy / "manifest.json").read_text())
    file = copy / "weights.safetensors"
    manifest["files"][file.name] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = command("export", copy, "--format", "autoawq", "-o", tmp_path / "out")
    assert result.code == 1 and "'blocks.0.act_scale.weight' has no place" in result.err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("architecture", ["mpt", "falcon", "falcon-40b", "phi3", "qwen3", "gpt-neox", "gemma2",
                                          "granite", "glm", "cohere", "olmo2", "phi"])
def test_every_family_goes_out_and_comes_back(tmp_path, architecture):
    """Fused projections, norms with an offset, groups of 64 beside 128: the second bundle means what the first does."""
    make_model(tmp_path / "model", architecture)
    first, second, folder = tmp_path / "first.bundle", tmp_path / "second.bundle", tmp_path / "out"
    assert command("build", tmp_path / "model", "-o", first, "--recipe", "rtn").code == 0
    result = command("export", first, "--format", "autoawq", "-o", folder)
    assert result.code == 0, result.err
    result = command("build", folder, "-o", second)
    assert result.code == 0, result.err
    config = load_decoder(tmp_path / "model").config
    before, after = (float_weights(load_file(bundle / "weights.safetensors"), config) for bundle in (first, second))
    assert {name for name in before if name.startswith("blocks.")} == {name for name in after if "blocks." in name}
    for name, weight in before.items():
        if name.startswith("blocks.") and weight.ndim == 2:
            assert torch.equal(weight, after[name]), name
        elif not name.startswith("head."):  # float16 -> 8 bits once more
            assert torch.allclose(weight, after[name], rtol=0, atol=2.0**-22), name


def test_outputs_that_fill_no_word(tmp_path):
    """One KV head of size 4: k and v have 4 outputs. AutoAWQ packs eight in a word, compressed-tensors pads."""
    make_model(tmp_path / "model", "llama2", num_attention_heads=32, num_key_value_heads=1, head_dim=4)
    first, second = tmp_path / "first.bundle", tmp_path / "second.bundle"
    assert command("build", tmp_path / "model", "-o", first, "--recipe", "rtn").code == 0
    result = command("export", first, "--format", "autoawq", "-o", tmp_path / "out")
    assert_refused(result, "self_attn.k_proj: 4 outputs do not divide by 8", "export to compressed-tensors")
    assert not list(tmp_path.glob("out*"))
    result = command("export", first, "--format", "compressed-tensors", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert command("build", tmp_path / "out", "-o", second).code == 0
    before, after = (load_file(path / "weights.safetensors") for path in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("blocks."))


def test_learned_positions_are_refused(tmp_path):
    make_model(tmp_path / "model", "opt")
    assert command("build", tmp_path / "model", "-o", tmp_path / "m.bundle", "--recipe", "rtn").code == 0
    assert_refused(command("export", tmp_path / "m.bundle", "--format", "autoawq", "-o", tmp_path / "out"),
                   "learned positions", "keep the bundle")
