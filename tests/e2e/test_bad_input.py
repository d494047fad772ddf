"""Bad input: one clear error with the remedy, exit code 1 (or 2 for misuse), no traceback, no bundle."""

import json
import os
import shutil

import pytest
from models import assert_refused, command, make_model

from edge_awq.bundle import hash_file


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


def reseal(bundle):
    """Hashes and sizes as the files now are."""
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit(bundle / "manifest.json", files={
        name: {"sha256": hash_file(bundle / name), "bytes": (bundle / name).stat().st_size} for name in files})


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
    result = command("run", bundle, "-p", "", "-n", 1, "--json")
    assert result.code == 0 and json.loads(result.out)["prompt_tokens"] == 1
    edit(bundle / "tokenizer_config.json", bos_token=None)
    reseal(bundle)
    assert_refused(command("run", bundle, "-p", "", "-n", 1), "the prompt is empty")


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


def test_a_bundle_is_no_checkpoint(bundle, tmp_path):
    refuse_build(bundle, tmp_path, "is a bundle already", "edge-awq run")


@pytest.mark.parametrize("output", ["", ".", "/"])
def test_output_without_a_name(model, output):
    assert_refused(command("build", model, "-o", output, "--recipe", "rtn"), "a folder with a name", "-o NAME.bundle")


def test_output_where_no_folder_can_be_made(model, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(command("build", model, "-o", tmp_path / "file" / "x", "--recipe", "rtn"), "x.partial", "is a file")


def test_output_that_is_a_link_keeps_the_link(model, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.bundle").symlink_to(tmp_path / "disk" / "real.bundle")
    for _ in range(2):
        assert command("build", model, "-o", tmp_path / "x.bundle", "--recipe", "rtn", "--fresh").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "model", "x.bundle"]
    assert (tmp_path / "x.bundle").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.bundle"]


def test_default_output_is_named_after_the_folder(model, tmp_path, monkeypatch):
    (tmp_path / "me@home").mkdir()
    shutil.move(model, tmp_path / "me@home" / "small")
    monkeypatch.chdir(tmp_path / "me@home" / "small")
    assert command("build", ".", "--precision", "fp16").code == 0
    assert (tmp_path / "me@home" / "small" / "small.bundle" / "manifest.json").is_file()
    monkeypatch.chdir(tmp_path)
    assert command("build", tmp_path / "me@home" / "small", "--precision", "fp16").code == 0
    assert (tmp_path / "small.bundle" / "manifest.json").is_file()


@pytest.mark.parametrize("version, remedy", [(99, "update edge-awq"), (1, "build it again")])
def test_other_op_contract(bundle, version, remedy):
    edit(bundle / "manifest.json", contract_version=version)
    assert_refused(command("run", bundle, "-p", "x"), f"op contract {version}", remedy)


def test_more_threads_than_can_be_started(bundle):
    assert_refused(command("run", bundle, "-p", "x", "--threads", "100000"), "threads = 100000", "1024")


@pytest.mark.parametrize("verb, option", [("run", "--meter-idle"), ("run", "--meter-interval"), ("tune", "--settle"),
                                          ("tune", "--min-tokens-per-s"), ("bench", "--meter-interval")])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_seconds_and_bounds_that_are_no_numbers(bundle, verb, option, value):
    result = command(verb, bundle, *(["-p", "x"] if verb == "run" else []), option, value)
    assert result.code == 2 and "finite" in result.err


@pytest.mark.parametrize("verb", ["bench", "tune"])
@pytest.mark.parametrize("name, words", [("", "is a folder"), ("no/r.json", "there is no folder")])
def test_results_that_cannot_be_written_are_known_before_the_work(bundle, tmp_path, verb, name, words):
    assert_refused(command(verb, bundle, "-o", tmp_path / name), words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_results_for_a_folder_that_is_read_only(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)  # permissions do not stop root
    assert_refused(command("bench", bundle, "-o", tmp_path / "r.json"), "you may not write to the folder", "-o")


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--json-schema", "nowhere.json", "No such file"), ("--json-schema", "{", "--json-schema: not JSON"),
    ("--json-schema", '{"a":' * 20_000, "not JSON"), ("--json-schema", '{"type": "fox"}', "Invalid type: fox"),
    ("--regex", "(a", "unclosed group"),
], ids=["no file", "not JSON", "deep", "no type", "no expression"])
def test_forms_that_are_none(bundle, option, value, said):
    assert_refused(command("run", bundle, "-p", "x", option, value), said)


def test_a_schema_that_is_a_list(bundle, tmp_path):
    file = tmp_path / "list.json"
    file.write_text("[1]")
    assert_refused(command("run", bundle, "-p", "x", "--json-schema", file), f"{file}: not a JSON object")
