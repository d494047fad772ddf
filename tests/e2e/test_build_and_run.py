"""The whole road: a checkpoint becomes a bundle, and it talks."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from models import assert_refused, command, greedy, make_model, spawn

from edge_awq import load, weights
from edge_awq.bundle import Bundle, hash_file
from edge_awq.runner.sampling import SamplingSettings

KEYS = ["text", "tokens", "prompt_tokens", "reused_tokens", "prefill_tok_s", "decode_tok_s", "ttft_s", "load_s",
        "peak_rss_bytes", "weight_bytes_per_token", "energy"]
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return folder, make_model(folder)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("built") / "tiny.bundle"
    result = command("build", model[0], "-o", path)
    assert result.code == 0, result
    return path


FAMILIES = ["mpt", "falcon", "falcon-40b", "falcon-11b", "qwen3", "phi3", "gpt-neox", "opt", "gemma2", "gemma3"]


@pytest.mark.parametrize("architecture", ["llama3", "mistral", "qwen2", "tinyllama", "mpt", "falcon", "opt", "gemma2"])
def test_fp16_bundle_says_what_transformers_says(tmp_path, architecture):
    reference = make_model(tmp_path / "model", architecture, seed=1)  # seed 0 has ties between tokens
    assert command("build", tmp_path / "model", "-o", tmp_path / "b", "--precision", "fp16").code == 0
    with load(tmp_path / "b") as session:
        ids = session.encode(PROMPT)
        expected = greedy(reference, ids, 24)
        found = session.generate(ids, max_tokens=24, ignore_eos=True, temperature=0.0)
        assert [token.token_id for token in found] == expected


@pytest.mark.parametrize("options", [["--recipe", "rtn"], ["--symmetric"], ["--group-size", "64"]])
def test_every_way_to_quantize_stays_near_the_float_model(tmp_path, model, options):
    folder, reference = model
    assert command("build", folder, "-o", tmp_path / "b", *options).code == 0
    assert_near(tmp_path / "b", reference)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_4_bits_of_every_family_stay_near_the_float_model(tmp_path, architecture):
    reference = make_model(tmp_path / "model", architecture, seed=1)  # seed 0 has ties between tokens
    text = tmp_path / "text.txt"
    text.write_text("A short text, so that ten models are calibrated in seconds. " * 20)
    assert command("build", tmp_path / "model", "-o", tmp_path / "b", "--calibration", text).code == 0
    assert_near(tmp_path / "b", reference)
    assert command("run", tmp_path / "b", "-p", PROMPT, "-n", 3).code == 0


def assert_near(bundle, reference):
    """Random weights in 4 bits: 15 steps over 5.5 sigma leave 11 % of noise per matmul; two layers have 14 of them."""
    import torch

    with load(bundle) as session:
        ids = session.encode(PROMPT)
        found = session.prefill(ids)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0, -1].numpy()
    assert np.linalg.norm(found - expected) < 0.11 * 14**0.5 * 1.2 * np.linalg.norm(expected)


def test_json_is_one_object_with_exactly_these_keys(bundle):
    result = command("run", bundle, "-p", PROMPT, "-n", 7, "--ignore-eos", "--json")
    table = json.loads(result.out)
    assert list(table) == KEYS
    assert table["tokens"] == 7 and table["energy"] is None and table["decode_tok_s"] > 0


def test_streamed_text_is_the_text_of_the_json(bundle):
    streamed = command("run", bundle, "-p", PROMPT, "-n", 12, "--greedy")
    assert streamed.out.removesuffix("\n") == json.loads(
        command("run", bundle, "-p", PROMPT, "-n", 12, "--greedy", "--json").out)["text"]
    assert "tok/s" in streamed.err and "energy not measured" in streamed.err


def test_a_prompt_comes_from_option_file_or_standard_input(bundle, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    answers = {
        command("run", bundle, "-p", PROMPT, "-n", 5, "--greedy").out,
        command("run", bundle, "--prompt-file", tmp_path / "prompt.txt", "-n", 5, "--greedy").out,
        command("run", bundle, "-n", 5, "--greedy", stdin=PROMPT).out,
    }
    assert len(answers) == 1


def test_answers_of_a_form(bundle, tmp_path):
    schema = '{"type": "array", "items": {"enum": ["fox", "dog"]}, "minItems": 2, "maxItems": 3}'
    (tmp_path / "animals.json").write_text(schema)
    answers = {command("run", bundle, "-p", PROMPT, "--greedy", "--json-schema", given).out
               for given in (schema, tmp_path / "animals.json")}
    assert len(answers) == 1 and set(json.loads(answers.pop())) <= {"fox", "dog"}
    assert command("run", bundle, "-p", PROMPT, "--regex", "the [fd]og").out in ("the fog", "the dog")
    assert command("chat", bundle, "--regex", "(fox|dog)", stdin="a\nb\n").out.split() in (
        [one, other] for one in ("fox", "dog") for other in ("fox", "dog"))


def test_chat_wraps_the_prompt(bundle):
    plain = json.loads(command("run", bundle, "-p", PROMPT, "-n", 1, "--json").out)
    chat = json.loads(command("run", bundle, "-p", PROMPT, "-n", 1, "--json", "--chat").out)
    assert chat["prompt_tokens"] > plain["prompt_tokens"]


def test_instructions_stand_before_the_prompt(bundle):
    with load(bundle) as session:
        expected = session.encode_chat([{"role": "system", "content": "Be brief."},
                                        {"role": "user", "content": PROMPT}])
    chat = command("run", bundle, "-p", PROMPT, "-n", 1, "--json", "--chat", "--system", "Be brief.")
    assert json.loads(chat.out)["prompt_tokens"] == len(expected)
    assert command("run", bundle, "-p", PROMPT, "--system", "Be brief.").code == 2


def test_seed_repeats(bundle):
    def answer(seed):
        return command("run", bundle, "-p", PROMPT, "-n", 16, "--temperature", 1.5, "--seed", seed).out

    assert answer(3) == answer(3) != answer(4)


def test_run_log_is_readable_and_keeps_the_prompt_to_itself(bundle, tmp_path):
    assert command("run", bundle, "-p", PROMPT, "-n", 6, "--ignore-eos", "--log", tmp_path / "runs").code == 0
    (run,) = (tmp_path / "runs").iterdir()
    text = (run / "run.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert events[0]["event"] == "start" and events[-1]["event"] == "summary"
    assert events[-1]["tokens"] == 6 and events[-1]["energy"] is None
    assert "quick brown" not in text
    assert len((run / "tokens.csv").read_text().splitlines()) == 1 + 6


def test_inspect_shows_every_block(bundle):
    shown = command("inspect", bundle).out
    assert "blocks.0" in shown and "blocks.1" in shown and "weights.safetensors" in shown
    manifest = json.loads(command("inspect", bundle, "--json").out)
    assert [part["name"] for part in manifest["report"]] == ["blocks.0", "blocks.1", "head"]
    for part in manifest["report"][:2]:
        assert part["loss_awq"] is not None and part["clipped"]
        assert part["kept"] == ("awq" if part["loss_awq"] < part["loss_rtn"] else "rtn")


def test_the_same_build_again_does_nothing(bundle, model):
    before = hash_file(bundle / "manifest.json")
    result = command("build", model[0], "-o", bundle)
    assert result.code == 0 and "is built already" in result.err
    assert hash_file(bundle / "manifest.json") == before


def test_another_build_does_not_replace_a_bundle_unasked(bundle, model):
    assert_refused(command("build", model[0], "-o", bundle, "--recipe", "rtn"), str(bundle), "--fresh")


def wait_for_unit(process, partial, unit):
    """Return once the build of ``partial`` has finished ``unit`` units."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if json.loads((partial / "build.json").read_text())["done"] >= unit:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.005)
    raise AssertionError(f"the build ended or hung: {process.communicate()}")


@pytest.mark.parametrize("recipe", ["awq", "best"])
def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(tmp_path, recipe):
    make_model(tmp_path / "model", num_hidden_layers=6)
    whole, killed = tmp_path / "whole.bundle", tmp_path / "killed.bundle"
    uninterrupted = spawn("build", tmp_path / "model", "-o", whole, "--recipe", recipe)
    assert uninterrupted.wait(240) == 0, uninterrupted.communicate()

    process = spawn("build", tmp_path / "model", "-o", killed, "--recipe", recipe)
    wait_for_unit(process, tmp_path / "killed.bundle.partial", 2)
    process.kill()
    process.communicate()
    assert not killed.exists()
    resumed = spawn("build", tmp_path / "model", "-o", killed, "--recipe", recipe, "--resume")
    _, log = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, log
    done = int(log.split("quantize: ")[1].split("/")[0])
    assert done >= 2
    assert Bundle.open(killed).manifest.files == Bundle.open(whole).manifest.files
    assert Bundle.open(killed).manifest.report == Bundle.open(whole).manifest.report
    assert not (tmp_path / "killed.bundle.partial").exists()


def test_text_that_the_model_samples_is_sampled_once(tmp_path, monkeypatch):
    from edge_awq import pipeline

    def interrupt(*_):
        raise KeyboardInterrupt

    make_model(tmp_path / "model")
    options = ("build", tmp_path / "model", "-o", tmp_path / "x.bundle", "--recipe", "rtn", "--calibration", "self")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "make_head", interrupt)
        stopped = command(*options)
    assert stopped.code == 1 and "sample text: 1/256" in stopped.err and "sample text: done" in stopped.err
    assert json.loads((tmp_path / "x.bundle.partial" / "build.json").read_text())["done"] == 3
    resumed = command(*options)
    assert resumed.code == 0 and "sample text" not in resumed.err
    assert not list((tmp_path / "x.bundle").glob("kept*"))
    assert Bundle.open(tmp_path / "x.bundle").manifest.quant["calibration"] == "self, 16 x 256 tokens"


def test_ctrl_c_before_anything_began_shows_no_traceback(tmp_path):
    """Sent while the command line is imported."""
    import signal

    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    done = subprocess.run([sys.executable, "-m", "edge_awq", "--help"], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_is_one_line_and_leaves_no_bundle(tmp_path):
    import signal

    make_model(tmp_path / "model", num_hidden_layers=6)
    process = spawn("build", tmp_path / "model", "-o", tmp_path / "x.bundle")
    wait_for_unit(process, tmp_path / "x.bundle.partial", 1)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Error: interrupted" in log and "Traceback" not in log
    assert not (tmp_path / "x.bundle").exists()


def test_ctrl_c_while_it_writes_is_one_line_and_the_log_has_what_was_measured(tmp_path, bundle, monkeypatch):
    import signal

    from edge_awq.engine.ort.engine import OrtEngine

    def step(engine, token_id):
        if engine.length == len(ids) + 5:
            signal.raise_signal(signal.SIGINT)
        return engine.prefill([token_id])

    with load(bundle) as session:
        ids = session.encode(PROMPT)
    monkeypatch.setattr(OrtEngine, "step", step)
    result = command("run", bundle, "-p", PROMPT, "--ignore-eos", "--meter", "none", "--log", tmp_path)
    assert result.code == 1 and result.err.count("Error: ") == 1 and "Error: interrupted" in result.err
    (run,) = tmp_path.iterdir()
    last = json.loads((run / "run.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "request" and last["n_gen"] == 6 and last["finish_reason"] is None
    assert len((run / "tokens.csv").read_text().splitlines()) == 1 + 6


def test_ctrl_c_that_a_library_turned_into_an_error_is_still_one_line(tmp_path, model, monkeypatch):
    import signal

    def build(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of an object") from None

    monkeypatch.setattr("edge_awq.pipeline.build", build)
    result = command("build", model, "-o", tmp_path / "x.bundle")
    assert result.code == 1 and result.err.startswith("Error: interrupted")


def test_a_full_disk_is_one_error(tmp_path, model, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights.os, "posix_fallocate", full)
    assert_refused(build_plain(model, tmp_path), "do not fit on the disk")
    assert not (tmp_path / "x.bundle").exists()


def build_plain(model, tmp_path):
    return command("build", model[0], "-o", tmp_path / "x.bundle", "--recipe", "rtn")


def test_a_disk_that_fills_up_during_the_work_is_one_error(tmp_path, model, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights.os, "pwrite", full)
    result = build_plain(model, tmp_path)
    assert result.code == 1 and "No space left on device" in result.err and "Traceback" not in result.err
    assert not (tmp_path / "x.bundle").exists()


def test_defaults_of_sampling_are_the_models_own(bundle):
    with load(bundle) as session:
        assert session.settings().sampling == SamplingSettings(temperature=0.0)
        assert len(session.settings().eos_ids) == 1


@pytest.mark.parametrize("name, number", [("SIGTERM", 15), ("SIGHUP", 1)])
def test_a_build_that_is_ended_says_so_and_goes_on_later(tmp_path, name, number):
    make_model(tmp_path / "model", num_hidden_layers=6)
    process = spawn("build", tmp_path / "model", "-o", tmp_path / "x.bundle")
    wait_for_unit(process, tmp_path / "x.bundle.partial", 1)
    process.send_signal(number)
    _, log = process.communicate(timeout=60)
    assert process.returncode == -number  # for whoever sent it, it ended by that signal
    assert f"Error: ended by {name}" in log and "goes on" in log and "Traceback" not in log
    assert not (tmp_path / "x.bundle").exists()


def test_a_hangup_that_nohup_ignores_is_ignored(tmp_path, model):
    import signal

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = spawn("build", model[0], "-o", tmp_path / "x.bundle", "--recipe", "rtn")
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.returncode == 0, process.communicate()


def test_a_disk_that_fills_up_between_two_blocks_is_one_error(tmp_path, model, monkeypatch):
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("edge_awq.model.checkpoint.save_file", full)
    result = command("build", model[0], "-o", tmp_path / "x.bundle")
    assert_refused(result, "carried-1: cannot be written", "No space left on device", "free space")
    assert not (tmp_path / "x.bundle").exists()
