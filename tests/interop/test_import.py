"""From another tool's checkpoint to a bundle: the same integers, the same logits, and one clear error otherwise."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from models import assert_refused, command, make_model
from published import FORMATS, Format, gptq, round_linear, save, write_checkpoint
from safetensors.torch import load_file, save_file

from edge_awq import load
from edge_awq.bundle import Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.interop.block import import_block
from edge_awq.model.decoder import load_decoder, logits
from quantized import float_weights
from stored import pack_nibbles

NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
         "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
DOWN = "model.layers.0.mlp.down_proj"
OUT = "model.layers.0.self_attn.o_proj.g_idx"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    make_model(folder, "llama-biased")
    return folder, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original[0], tmp_path / "model")


def with_values(model, linears):
    """The transformers model, with the weights that the integers mean."""
    state = model.state_dict()
    return state | {f"{module}.weight": torch.from_numpy(linear.value.astype(np.float32))
                    for module, linear in linears.items()}


@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize("name", FORMATS)
def test_a_block_holds_the_very_same_integers(folder, name, group_size):
    linears = write_checkpoint(folder, FORMATS[name], group_size)
    found = import_block(load_decoder(folder), 1)
    for ours, theirs in NAMES.items():
        expected = linears[f"model.layers.1.{theirs}"]
        assert np.array_equal(found.tensors[f"{ours}.qweight"].numpy(), pack_nibbles(expected.q))
        assert np.array_equal(found.tensors[f"{ours}.zero_points"].numpy(), pack_nibbles(expected.zero))
        assert np.array_equal(found.tensors[f"{ours}.scales"].numpy(), expected.scale)
    assert found.report.imported == {ours: linears[f"model.layers.1.{theirs}"].q.size for ours, theirs in NAMES.items()}


@pytest.mark.parametrize("name", ["autoawq-gemm", "gptq"])
def test_build_and_run(original, folder, tmp_path, name):
    linears = write_checkpoint(folder, FORMATS[name], 64)
    result = command("build", folder, "-o", tmp_path / "m.bundle")
    assert result.code == 0, result.err
    manifest = Bundle.open(tmp_path / "m.bundle").manifest
    assert (manifest.quant["group_size"], manifest.quant["head_bits"]) == (64, 8)
    counts = [sum(part["imported"].values()) for part in manifest.report]
    assert counts == [sum(linear.q.size for linear in linears.values()) // 2] * 2 + [0]
    shown = command("inspect", tmp_path / "m.bundle").out
    assert f"imported: 7 linears, {counts[0]:,} weights equal to the bit" in shown

    tensors = load_file(tmp_path / "m.bundle" / "weights.safetensors")
    meant = float_weights(tensors, load_decoder(folder).config)
    for module, linear in linears.items():
        index, _, theirs = module.removeprefix("model.layers.").partition(".")
        ours = next(ours for ours, name in NAMES.items() if name == theirs)
        assert np.array_equal(meant[f"blocks.{index}.{ours}.weight"].numpy(), linear.value.astype(np.float32))

    _, model = original
    state = with_values(model, linears) | {"lm_head.weight": meant["head.weight"]}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    with load(tmp_path / "m.bundle") as session, torch.no_grad():
        ids = session.encode("The quick brown fox")
        found, expected = session.prefill(ids), model(torch.tensor([ids])).logits[0, -1].numpy()
        model.load_state_dict(before)
        assert command("run", tmp_path / "m.bundle", "-p", "The", "-n", 3).code == 0
    # Activations rounded to 8 bits are off by half a step of 1/127 of the largest of a block (three times the mean of
    # a bell curve) at most, in each of 15 linears, independently: relative L2 below 15**0.5 * 0.5 / 127 * 3.
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_quantized_checkpoint_is_a_decoder_like_any_other(original, folder):
    linears = write_checkpoint(folder, FORMATS["autoawq-gemv"], 64)
    _, model = original
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(with_values(model, linears))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = model(ids).logits
    model.load_state_dict(before)
    found = logits(load_decoder(folder), ids)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_packed_head(folder):
    linears = write_checkpoint(folder, FORMATS["autoawq-gemv"], 64, head=True)
    assert command("build", folder, "-o", folder.parent / "m.bundle").code == 0
    bundle = Bundle.open(folder.parent / "m.bundle")
    tensors = load_file(bundle.weights)
    assert np.array_equal(tensors["head.qweight"].numpy(), pack_nibbles(linears["lm_head"].q))
    assert bundle.manifest.report[-1]["imported"] == {"head": linears["lm_head"].q.size}


def test_one_file_of_any_name_without_a_word_in_the_config(folder):
    linears = write_checkpoint(folder, FORMATS["llm-awq-v2"], 128)
    torch.save(load_file(folder / "model.safetensors"), folder / "model-w4-g128-awq-v2.pt")
    (folder / "model.safetensors").unlink()
    decoder = load_decoder(folder)
    assert decoder.checkpoint.layout.name == "llm-awq v2"
    found = import_block(decoder, 0).tensors["down.qweight"]
    assert np.array_equal(found.numpy(), pack_nibbles(linears[DOWN].q))


def test_linears_that_were_left_alone_stay_16_bits_wide(folder):
    linears = write_checkpoint(folder, FORMATS["gptq"], 64)
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items()
               if not name.startswith(f"{DOWN}.") or name.endswith("bias")}
    tensors[f"{DOWN}.weight"] = torch.from_numpy(linears[DOWN].value).half()
    save(folder, tensors, FORMATS["gptq"].config(64))
    assert command("build", folder, "-o", folder.parent / "m.bundle").code == 0
    stored = load_file(folder.parent / "m.bundle" / "weights.safetensors")
    assert torch.equal(stored["blocks.0.down.weight"], tensors[f"{DOWN}.weight"])
    assert "blocks.1.down.qweight" in stored
    assert command("run", folder.parent / "m.bundle", "-p", "The", "-n", 2).code == 0


@pytest.mark.parametrize(("name", "left_alone"), [
    ("autoawq-gemm", {"modules_to_not_convert": ["lm_head", DOWN]}),
    ("autoawq-gemv", {"modules_to_not_convert": ["down_proj"]}),
    ("gptq", {"dynamic": {r"-:.*\.0\.mlp\.down_proj": {}}}),
], ids=["modules_to_not_convert", "part-of-a-name", "dynamic"])
def test_what_the_config_leaves_alone_is_what_has_a_weight(folder, name, left_alone):
    """The tensors decide, as patterns match differently in every tool: layer 1 is packed whatever they match."""
    linears = write_checkpoint(folder, FORMATS[name], 64)
    tensors = {stored: tensor for stored, tensor in load_file(folder / "model.safetensors").items()
               if not stored.startswith(f"{DOWN}.") or stored.endswith("bias")}
    tensors[f"{DOWN}.weight"] = torch.from_numpy(linears[DOWN].value).half()
    save(folder, tensors, config_of(name, **left_alone))
    decoder = load_decoder(folder)
    assert torch.equal(import_block(decoder, 0).tensors["down.weight"], tensors[f"{DOWN}.weight"])
    packed = import_block(decoder, 1).tensors["down.qweight"]
    assert np.array_equal(packed.numpy(), pack_nibbles(linears[DOWN.replace(".0.", ".1.")].q))


@pytest.mark.parametrize("width", [-1, 256])
def test_wide_groups_are_split(folder, width):
    tensors = load_file(folder / "model.safetensors")
    expected = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        module = name.removesuffix(".weight")
        weight = tensors[name].float()
        if width != -1 and weight.shape[1] % width:
            continue
        linear = expected[module] = round_linear(weight, weight.shape[1] if width == -1 else width)
        del tensors[name]
        tensors |= {f"{module}.{part}": torch.from_numpy(array) for part, array in gptq(linear).items()}
    save(folder, tensors, FORMATS["gptq"].config(width))
    found = import_block(load_decoder(folder), 0).tensors
    assert found["down.scales"].shape == (128, 2)
    assert np.array_equal(found["down.scales"].numpy(), np.repeat(expected[DOWN].scale, 2, axis=1))
    assert np.array_equal(found["down.qweight"].numpy(), pack_nibbles(expected[DOWN].q))


def scatter(folder, module, linear, seed=3):
    """Act-order: the groups of one linear over random inputs."""
    shuffled = np.random.default_rng(seed).permutation(linear.q.shape[1])
    order = np.sort(shuffled.reshape(-1, 64)).ravel()
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"{module}.{part}": torch.from_numpy(array) for part, array in gptq(linear, order=order).items()}
    save(folder, tensors, FORMATS["gptq"].config(64) | {"desc_act": True})
    return order


def test_act_order_of_down_moves_the_rows_that_feed_it(folder):
    linears = write_checkpoint(folder, FORMATS["gptq"], 64)
    order = scatter(folder, DOWN, linears[DOWN])
    decoder = load_decoder(folder)
    tensors = import_block(decoder, 0).tensors
    for ours in ("gate", "up"):
        q = linears[f"model.layers.0.mlp.{ours}_proj"].q
        assert np.array_equal(tensors[f"{ours}.qweight"].numpy(), pack_nibbles(q[order]))
        stored = load_file(folder / "model.safetensors")[f"model.layers.0.mlp.{ours}_proj.bias"].float()
        assert torch.equal(tensors[f"{ours}.bias"], stored[order])
    meant = float_weights(tensors, decoder.config)
    block = decoder.block(0)
    x = torch.randn(5, 128)

    def mlp(weights):
        def linear(name, x):
            return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return linear("down", torch.nn.functional.silu(linear("gate", x)) * linear("up", x))

    # the same sums in another order: float32 rounding only
    assert torch.allclose(mlp(meant), mlp(block), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("theirs", ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"])
def test_act_order_elsewhere_is_refused(folder, theirs):
    linears = write_checkpoint(folder, FORMATS["gptq"], 64)
    module = f"model.layers.1.{theirs}"
    scatter(folder, module, linears[module])
    with pytest.raises(EdgeAwqError, match=rf"'{module}\.g_idx': act-order"):
        import_block(load_decoder(folder), 1)


def config_of(kind, **changes):
    return {**FORMATS[kind].config(64), **changes}


@pytest.mark.parametrize(("config", "words"), [
    ({"quant_method": "fp8"}, ["quant_method 'fp8'", "compressed-tensors", "original 16-bit checkpoint"]),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ["quant_method 'bitsandbytes'"]),
    (config_of("gptq", bits=8), ["8 bits per weight", "only 4"]),
    (config_of("gptq", bits=3), ["3 bits per weight"]),
    (config_of("autoawq-gemm", group_size=32), ["group size 32", "128 and 64"]),
    (config_of("autoawq-gemm", group_size="many"), ["group size 'many'"]),
    (config_of("autoawq-gemm", version="marlin"), ["AWQ packing 'marlin'", "gemv_fast"]),
    (config_of("gptq", checkpoint_format="marlin"), ["checkpoint format 'marlin'", "gptq_v2"]),
    (config_of("gptq", dynamic={"+:.*down.*": {"bits": 8}}), ["mixed bits", "+:.*down.*"]),
    (config_of("gptq", dynamic={".*down.*": {"group_size": 128}}), ["mixed group sizes", "'.*down.*' have 128"]),
    (config_of("gptq", dynamic=[".*down.*"]), ["dynamic = ['.*down.*'], a table is expected"]),
    (config_of("gptq", dynamic={".*down.*": "skip"}), ["dynamic '.*down.*' = 'skip'"]),
    (config_of("autoawq-gemv"), ["shapes contradict each other", "_proj"]),
    (config_of("gptq", group_size=128), ["shapes contradict each other or group size 128"]),
    ({"quant_method": "compressed-tensors"}, ["no config_groups"]),
    ({"quant_method": "compressed-tensors", "config_groups": ["group_0"]}, ["config_groups = ['group_0'], a table"]),
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": 4}}, ["group_0 = 4, a table is expected"]),
], ids=lambda value: None if isinstance(value, list) else "-".join(map(str, value.values()))[:40])
def test_a_config_that_we_cannot_follow(folder, config, words):
    write_checkpoint(folder, Format(FORMATS["gptq"].parts, lambda size: config), 64)
    assert_refused(command("build", folder, "-o", folder.parent / "m.bundle"), *words)
    assert not (folder.parent / "m.bundle").exists()


def test_packed_tensors_of_another_tool(folder):
    tensors = load_file(folder / "model.safetensors")
    save(folder, tensors, FORMATS["gptq"].config(64))
    assert_refused(command("build", folder), "says GPTQ", "*.qweight")


def test_config_without_a_word_and_shapes_that_fit_nothing(folder):
    write_checkpoint(folder, Format(FORMATS["gptq"].parts, lambda size: None), 64)
    assert_refused(command("build", folder), "packed in an unknown way")


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save(folder, tensors, json.loads((folder / "config.json").read_text())["quantization_config"])


@pytest.mark.parametrize(("edit", "words"), [
    (lambda t: t.pop(f"{DOWN}.scales"), [f"'{DOWN}.scales' is missing", "qweight"]),
    (lambda t: t.update({f"{DOWN}.qweight": t[f"{DOWN}.qweight"].repeat(2, 1)}), [f"'{DOWN}.qweight' packs 8 bits"]),
    (lambda t: t.update({f"{DOWN}.qzeros": t[f"{DOWN}.qzeros"][:1]}), [f"'{DOWN}'", "first at qzeros"]),
    (lambda t: t.update({f"{DOWN}.qweight": t[f"{DOWN}.qweight"].float()}), [f"'{DOWN}.qweight' is torch.float32"]),
    (lambda t: t[f"{DOWN}.scales"].fill_(torch.nan), [DOWN, "NaN"]),
    (lambda t: t[f"{DOWN}.qzeros"].fill_(-1), [f"'{DOWN}.qzeros'", "stored as 15", "gptq_v2"]),
    (lambda t: t[OUT].copy_(t[OUT].roll(7)), [f"'{OUT}'", "act-order", "desc_act=False"]),
    (lambda t: t[f"{DOWN}.g_idx"].zero_(), [f"'{DOWN}.g_idx'", "do not have 64 inputs"]),
], ids=["missing", "8-bit", "shape", "dtype", "nan", "zero-point-16", "act-order", "g-idx"])
def test_tensors_that_we_cannot_represent(folder, edit, words):
    write_checkpoint(folder, FORMATS["gptq"], 64)
    change(folder, edit)
    assert_refused(command("build", folder, "-o", folder.parent / "m.bundle"), *words)
    assert not (folder.parent / "m.bundle").exists()


def shard(folder, second):
    """Split the weights over two files with an index; tensors that ``second`` picks lie in the second."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + second(name)}-of-00002.safetensors" for name in tensors}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["autoawq-gemm", "gptq"])
def test_parts_of_a_linear_in_different_shards(folder, name):
    linears = write_checkpoint(folder, FORMATS[name], 64)
    shard(folder, lambda stored: stored.endswith("qweight"))
    found = import_block(load_decoder(folder), 0).tensors["down.qweight"]
    assert np.array_equal(found.numpy(), pack_nibbles(linears[DOWN].q))


@pytest.mark.parametrize("name", ["autoawq-gemm", "gptq"])
@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("promised", [True, False], ids=["in-the-index", "nowhere"])
def test_packed_tensor_that_a_shard_lacks(folder, name, part, promised):
    write_checkpoint(folder, FORMATS[name], 64)
    shard(folder, lambda stored: ".layers.1." in stored)
    missing, path = f"{DOWN}.{part}", folder / "model-00001-of-00002.safetensors"
    save_file({stored: tensor for stored, tensor in load_file(path).items() if stored != missing}, path)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    if not promised:
        del table["weight_map"][missing]
    index.write_text(json.dumps(table))
    words = [f"'{missing}' is named by the index"] if promised else [f"'{missing}' is missing, though '{DOWN}."]
    assert_refused(command("build", folder, "-o", folder.parent / "m.bundle"), *words, "download the checkpoint again")
    assert not (folder.parent / "m.bundle").exists()


def test_shards_of_two_checkpoints(folder, tmp_path):
    """Group size 64 in one, 128 in the other."""
    other = shutil.copytree(folder, tmp_path / "other")
    for place, size in ((folder, 64), (other, 128)):
        write_checkpoint(place, FORMATS["gptq"], size)
        shard(place, lambda stored: ".layers.1." in stored)
    shutil.copy(other / "model-00002-of-00002.safetensors", folder)
    assert_refused(command("build", folder), "'model.layers.1.mlp.down_proj.qweight'", "groups have another size",
                   "4 bits in groups of 64", "shards of two downloads")


@pytest.mark.parametrize(("options", "word"), [
    (["--precision", "fp16"], "--precision fp16"),
    (["--group-size", 128], "--group-size 128"),
    (["--symmetric"], "--symmetric"),
])
def test_options_that_contradict_the_checkpoint(folder, options, word):
    write_checkpoint(folder, FORMATS["autoawq-gemm"], 64)
    assert_refused(command("build", folder, *options), word, "contradicts", "AutoAWQ GEMM, 4 bits, group size 64")
