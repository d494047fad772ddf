"""The commands of a device on emulated aarch64, on bundles that this machine built."""

from __future__ import annotations

import json

import pytest
from models import command, make_model

from emulated import emulated, with_older_onnxruntime

PROMPT = "The quick brown fox"
ANSWER = ("-p", PROMPT, "-n", 12, "--greedy", "--ignore-eos", "--json")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(scope="module")
def device(machine):
    """Calls edge-awq there."""
    return lambda *arguments, stdin=None: call(machine, *arguments, stdin=stdin)


def call(machine, *arguments, stdin=None):
    done = machine.run("-m", "edge_awq", *arguments, stdin=stdin)
    assert done.returncode == 0, done
    return done


@pytest.fixture(scope="module")
def bundles(device, tmp_path_factory):
    """Of one model: in 4 bits, and in 16, whose products are float32, so that both machines find the same tokens."""
    folder = tmp_path_factory.mktemp("bundles")
    make_model(folder / "model", seed=1)  # seed 0 has ties between tokens
    for name, options in (("w4", ("--recipe", "rtn")), ("fp16", ("--precision", "fp16"))):
        assert command("build", folder / "model", "-o", folder / name, *options).code == 0
    return folder


def test_the_text_is_that_of_this_machine(device, bundles):
    here = json.loads(command("run", bundles / "fp16", *ANSWER).out)
    there = json.loads(device("run", bundles / "fp16", *ANSWER).stdout)
    assert there["text"] == here["text"]
    assert there["tokens"] == 12 and there["weight_bytes_per_token"] == here["weight_bytes_per_token"]


def test_four_bits_run_and_are_logged(device, bundles, tmp_path):
    answer = json.loads(device("run", bundles / "w4", *ANSWER, "--log", tmp_path, "--meter", "none").stdout)
    assert answer["tokens"] == 12 and answer["peak_rss_bytes"] > 0
    [log] = tmp_path.iterdir()
    assert '"arch": "aarch64"' in (log / "run.jsonl").read_text()
    assert "n_gen 12" in device("log", "show", log).stdout


def test_the_last_onnxruntime_for_python_3_10_does_not_complain_of_the_gpu(machine, bundles):
    older = with_older_onnxruntime(machine)
    assert "device/vendor" in older.run("-c", "import onnxruntime").stderr
    done = call(older, "run", bundles / "w4", "-p", PROMPT, "-n", 2)
    assert len(done.stderr.strip().splitlines()) == 1 and "tok/s" in done.stderr


def test_a_chat_and_a_look_at_the_bundle(device, bundles):
    talk = device("chat", bundles / "w4", "-n", 4, stdin="Hello\nAgain\n")
    assert talk.stderr.count("tokens at") == 2
    assert "every file's hash checked" in device("inspect", bundles / "w4").stdout


def test_doctor_finds_the_engine_and_says_what_meters_lack(device):
    """Meters sample in a process of their own."""
    found = device("doctor").stdout
    assert "Linux aarch64" in found and "onnxruntime 1." in found
    assert "did not start" not in found
