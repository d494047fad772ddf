"""Bad input: one clear error with the remedy, exit code 1 (or 2 for misuse), no traceback, no bundle."""

import json
import shutil

import pytest
from models import assert_refused, command, make_model


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    make_model(folder / "model")
    assert command("build", folder / "model", "-o", folder / "b", "--recipe", "rtn").code == 0
    return folder


@pytest.fixture
def model(pristine, tmp_path):
    return shutil.copytree(pristine / "model", tmp_path / "model")


@pytest.fixture
def bundle(pristine, tmp_path):
    return shutil.copytree(pristine / "b", tmp_path / "b")


def refuse_build(model, tmp_path, *words, options=("--recipe", "rtn")):
    assert_refused(command("build", model, "-o", tmp_path / "out", *options), *words)
    assert not (tmp_path / "out").exists()


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_such_model(tmp_path):
    refuse_build(tmp_path / "nothing", tmp_path, "nothing", "no such folder")


def test_file_instead_of_folder(model, tmp_path):
    refuse_build(model / "config.json", tmp_path, "config.json", "no such folder")


def test_half_downloaded(model, tmp_path):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuse_build(model, tmp_path, "model.safetensors", "not a whole safetensors file")


def test_unknown_family(model, tmp_path):
    edit(model / "config.json", model_type="rwkv")
    refuse_build(model, tmp_path, "rwkv", "known model types: ", "llama")


def test_config_that_lies(model, tmp_path):
    edit(model / "config.json", num_key_value_heads=1)
    refuse_build(model, tmp_path, "k_proj", "config.json says")


def test_no_tokenizer(model, tmp_path):
    (model / "tokenizer.json").unlink()
    refuse_build(model, tmp_path, "tokenizer.json")


def test_broken_tokenizer(model, tmp_path):
    (model / "tokenizer.json").write_text("{}")
    refuse_build(model, tmp_path, "tokenizer.json")


@pytest.mark.parametrize("recipe", ["rtn", "awq"])
def test_tokenizer_of_a_larger_model(tmp_path, recipe):
    make_model(tmp_path / "small", vocab_size=200)
    refuse_build(tmp_path / "small", tmp_path, "of the tokenizer, 200 tokens in the model", "tokenizer.json belongs to",
                 options=("--recipe", recipe))


def test_inputs_that_no_group_size_divides(tmp_path):
    make_model(tmp_path / "odd", "llama2", hidden_size=96, num_attention_heads=4, num_key_value_heads=4)
    refuse_build(tmp_path / "odd", tmp_path, "K = 96", "--precision fp16")


@pytest.mark.parametrize("name, content, word", [
    ("empty.txt", b"", "no text"),
    ("latin.txt", b"caf\xe9 au lait", "not UTF-8"),
    ("empty.jsonl", b"", "no text"),
    ("broken.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2"),
    ("other.jsonl", b'{"prompt": "fine"}\n', "line 1"),
    (None, None, "cannot be read"),
])
def test_calibration_that_cannot_be_used(model, tmp_path, name, content, word):
    path = tmp_path / (name or "missing.txt")
    if content is not None:
        path.write_bytes(content)
    refuse_build(model, tmp_path, path.name, word, options=("--calibration", path))


def test_output_that_is_something_else(model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("sun")
    for option in ("--fresh", "--resume"):
        result = command("build", model, "-o", tmp_path / "photos", "--recipe", "rtn", option)
        assert_refused(result, "photos", "is not a bundle")
    assert (tmp_path / "photos" / "holiday.jpg").read_text() == "sun"


def test_unknown_target(model, tmp_path):
    refuse_build(model, tmp_path, "toaster", "known: cpu", options=("--target", "toaster"))


@pytest.mark.parametrize("arguments", [
    ["build", "MODEL", "--precision", "int3"], ["build", "MODEL", "--recipe", "magic"], ["build"],
    ["build", "MODEL", "--group-size", "7"], ["run", "BUNDLE", "-p", "x", "-n", "0"],
    ["run", "BUNDLE", "-p", "x", "-n", "many"], ["run", "BUNDLE", "-p", "x", "--threads", "0"],
    ["run", "BUNDLE", "-p", "x", "--greedy", "--temperature", "1"], ["run", "BUNDLE", "--no-such-option"],
    ["fly"], ["run", "BUNDLE", "-p", "x", "--prompt-file", "y"],
])
def test_misuse_of_the_command_line(model, bundle, arguments):
    places = {"MODEL": model, "BUNDLE": bundle}
    result = command(*(places.get(argument, argument) for argument in arguments))
    assert result.code == 2 and result.err.count("Error: ") == 1 and result.out == ""


@pytest.mark.parametrize("options, word", [
    (["--temperature", "-1"], "temperature = -1"), (["--top-p", "2"], "top_p = 2"), (["--top-k", "-3"], "top_k = -3"),
    (["--min-p", "nan"], "min_p = nan"), (["--seed", "-1"], "seed = -1"), (["--stop", ""], "stop"),
    (["--repetition-penalty", "0"], "repetition_penalty = 0"), (["--context", "100000"], "context = 100000"),
    (["--kv-bits", "8"], "kv_bits = 8"),
])
def test_values_that_are_not_possible(bundle, options, word):
    assert_refused(command("run", bundle, "-p", "x", "-n", 2, *options), word)


def test_prompt_longer_than_the_context(bundle):
    assert_refused(command("run", bundle, "-p", "fox " * 2000), "context", "256")


def test_prompt_that_is_not_text(bundle, tmp_path):
    (tmp_path / "p").write_bytes(b"\xff\xfe")
    assert_refused(command("run", bundle, "--prompt-file", tmp_path / "p"), "not UTF-8")


def test_prompt_file_that_is_missing(bundle, tmp_path):
    result = command("run", bundle, "--prompt-file", tmp_path / "missing")
    assert result.code == 1 and "missing: No such file" in result.err


def test_empty_prompt_starts_with_bos(bundle):
    assert command("run", bundle, "-p", "", "-n", 1).code in (0, 1)


@pytest.mark.parametrize("verb", ["run", "inspect"])
@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "tokenizer.json"])
def test_flipped_byte(bundle, verb, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 0x10
    (bundle / name).write_bytes(data)
    options = ["-p", "x"] if verb == "run" else []
    assert_refused(command(verb, bundle, *options), name, "is damaged")


def test_missing_file(bundle):
    (bundle / "weights.safetensors").unlink()
    assert_refused(command("run", bundle, "-p", "x"), "weights.safetensors is missing")


def test_newer_schema(bundle):
    edit(bundle / "manifest.json", schema=99)
    assert_refused(command("run", bundle, "-p", "x"), "schema 99 is newer", "pip install -U edge-awq")


def test_not_a_bundle(tmp_path):
    for arguments in (["run", tmp_path, "-p", "x"], ["inspect", tmp_path]):
        assert_refused(command(*arguments), "is not a bundle")


def test_log_folder_that_cannot_be_made(bundle, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(command("run", bundle, "-p", "x", "-n", 1, "--log", tmp_path / "file" / "runs"), "run log")
