"""The benchmark's command: one small run through real processes, and what it refuses."""

import errno
import json
import signal
import sys
from pathlib import Path

import onnxruntime
import pytest
from models import command, make_model

sys.path.insert(0, str(Path(__file__).parents[1] / "power"))
from trees import Board

from edge_awq.bench import bench
from edge_awq.bench.protocols import PROTOCOLS, Case, Protocol
from edge_awq.bench.results import read_results
from edge_awq.bench.worker import Worker
from edge_awq.bundle import Bundle
from edge_awq.shapes import Shape, find_shape


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, its bundles in both precisions, and a bundle of another model."""
    folder = tmp_path_factory.mktemp("bench")
    for name, changes in (("model", {}), ("other", {"num_hidden_layers": 1})):
        make_model(folder / name, **changes)
    for model, precision, bundle in (("model", "w4a16", "w4"), ("model", "fp16", "fp16"), ("other", "fp16", "other")):
        built = command("build", folder / model, "--recipe", "rtn", "--precision", precision,
                        "-o", folder / f"{bundle}.bundle")
        assert built.code == 0, built.err
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A protocol that a tiny model's context holds, on a machine that counts as idle."""
    monkeypatch.setitem(PROTOCOLS, "figure", Protocol("figure", (Case(4, 9),), median_step=True))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


def test_engines_side_by_side_then_compared(made, tmp_path):
    pair = (made / "w4.bundle", made / "fp16.bundle")
    done = command("bench", *pair, "--baseline", made / "model", "--repeats", 2, "--threads", 1,
                   "-o", tmp_path / "a.json")
    assert done.code == 0, done.err
    results = [one.result for one in read_results(tmp_path / "a.json")]
    assert [(one.engine, one.precision) for one in results] == [
        ("edge-awq", "w4a16"), ("edge-awq", "fp16"), ("transformers", "fp16")]
    for one in results:
        assert one.tok_s_median > 0 and one.tok_s_mad >= 0 and one.load_s > 0 and one.peak_rss_bytes > 1e7
        assert (one.model, one.profile, one.repeats, one.oom) == ("model", "cpu", 2, False)
        assert one.j_per_token is None and one.j_per_token_problem == "no_power_source"
        assert one.provenance.utc and one.provenance.software["edge_awq"]
    for one, bundle in zip(results, pair, strict=False):
        assert one.runtime == f"onnxruntime {onnxruntime.__version__}"
        engines = {entry["sha256"] for name, entry in Bundle.open(bundle).manifest.files.items() if "engines/" in name}
        assert one.provenance.engine_sha256 in engines
    assert results[2].runtime.startswith("torch ") and results[2].provenance.engine_sha256 is None
    assert results[0].provenance.bundle_sha256 != results[1].provenance.bundle_sha256
    assert "transformers" in done.out and "4 + 9" in done.out

    table = json.loads((tmp_path / "a.json").read_text())
    for entry in table["results"]:  # a thousandth and a thousand times as fast: no noise reaches that far
        entry |= {"valid": True, "invalid_reasons": [], "tok_s_mad": 0.0}
    for factor, code in ((1e-3, 0), (1e3, 1)):
        for entry, measured in zip(table["results"], results, strict=True):
            entry["tok_s_median"] = measured.tok_s_median * factor
        (tmp_path / "old.json").write_text(json.dumps(table))
        again = command("bench", pair[0], "--repeats", 1, "--compare", tmp_path / "old.json", "--json")
        assert json.loads(again.out)["results"][0]["engine"] == "edge-awq"
        assert again.code == code
        assert ("regression" if code else "faster") in again.err


@pytest.mark.parametrize("written", [True, False], ids=["to a file", "only shown"])
def test_ctrl_c_keeps_and_shows_what_was_measured(made, tmp_path, monkeypatch, written):
    """Ctrl-C while the second bundle decodes."""
    decode, file, decodes = Worker.decode, tmp_path / "a.json", []

    def interrupted(worker, count):
        decodes.append(count)
        if len(decodes) == 3:  # after a warm-up and one repeat of the first
            signal.raise_signal(signal.SIGINT)
        return decode(worker, count)

    monkeypatch.setattr(Worker, "decode", interrupted)
    done = command("bench", made / "w4.bundle", made / "fp16.bundle", "--repeats", 1, "--meter", "none",
                   *(("-o", file) if written else ()))
    assert done.code == 1 and done.err.count("Error: ") == 1 and "Error: interrupted" in done.err
    assert "w4a16" in done.out and "fp16" not in done.out
    if written:
        assert [one.result.precision for one in read_results(file)] == ["w4a16"]


def test_results_are_not_compared_with_themselves(made, tmp_path):
    file = tmp_path / "a.json"
    assert command("bench", made / "w4.bundle", "--repeats", 1, "--meter", "none", "-o", file).code == 0
    before = file.read_bytes()
    done = command("bench", made / "w4.bundle", "--repeats", 1, "--meter", "none", "-o", file, "--compare", file)
    assert done.code == 1 and f"--compare and -o are both {file}" in done.err
    assert file.read_bytes() == before


def test_a_full_disk_ends_nothing_and_the_results_are_shown(made, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("edge_awq.bench.results.write_text", full)
    done = command("bench", made / "w4.bundle", made / "fp16.bundle", "--repeats", 1, "--meter", "none",
                   "-o", tmp_path / "a.json")
    assert done.code == 1 and f"Error: {tmp_path}/a.json: No space left on device" in done.err
    assert "w4a16" in done.out and "fp16" in done.out


def test_a_meter_that_dies_costs_the_joules_and_says_so(made, tmp_path, monkeypatch):
    """The results stand, with null and the reason; against an older file they give no verdict, which is no pass."""
    Board(tmp_path, "orin-nx").set_total_w(12)
    start, decode, meters = bench.start_meter, Worker.decode, []

    def kept(choice):
        meters.append(start(choice))
        return meters[-1]

    def deadly(worker, count):
        meters[-1]._process.kill()
        return decode(worker, count)

    monkeypatch.setattr(bench, "start_meter", kept)
    arguments = ("bench", made / "w4.bundle", "--repeats", 2, "--meter", "ina3221", "--meter-root", tmp_path)
    whole = command(*arguments, "--meter-interval", 0.001, "-o", tmp_path / "whole.json")
    assert whole.code == 0 and "sampler_lost" not in whole.out
    monkeypatch.setattr(Worker, "decode", deadly)
    done = command(*arguments, "-o", tmp_path / "lost.json")
    assert done.code == 0, done.err
    (one,) = read_results(tmp_path / "lost.json")
    assert (one.result.j_per_token, one.result.j_per_token_problem) == (None, "sampler_lost")
    assert one.result.tok_s_median > 0 and not one.result.valid
    assert "meter: sampler_lost: ina3221: the sampling process was killed" in done.out
    held = command(*arguments, "--compare", tmp_path / "whole.json")
    assert held.code == 1 and "nothing could be compared: the " in held.err and "Traceback" not in held.err


SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 64}


def test_a_shape_by_name_is_made_once_and_kept(tmp_path, monkeypatch):
    shape = Shape("small", {**find_shape("tinyllama-1.1b").config, **SMALL})
    monkeypatch.setattr("edge_awq.bench.shape_models.find_shape", lambda name: shape)
    monkeypatch.setenv("EDGE_AWQ_SHAPES", str(tmp_path))
    arguments = ("bench", "--shape", "small", "--precision", "w4a16,fp16", "--repeats", 1, "--json")
    done, again = command(*arguments), command(*arguments)
    assert done.code == 0, done.err
    results = json.loads(done.out)["results"]
    assert [(one["model"], one["shape"], one["precision"]) for one in results] == [
        ("small", "small", "w4a16"), ("small", "small", "fp16")]
    assert all(one["provenance"]["random_weights"] for one in results)
    assert again.err.count("is built already") == 2
    assert (tmp_path / "small" / "small" / "config.json").is_file()


BAD = {
    "no bundle": ([], "there is nothing to measure"),
    "two models": (["w4.bundle", "other.bundle"], "differ in their source: model and other"),
    "twice the same": (["w4.bundle", "w4.bundle"], "are both w4a16"),
    "not a bundle": (["model"], "is not a bundle"),
    "shape": (["--shape", "gpt-9"], "shape 'gpt-9' is not known"),
    "shape beside a bundle": (["w4.bundle", "--shape", "llama-2-7b"], "exclude each other"),
    "precision without a shape": (["w4.bundle", "--precision", "fp16"], "there is no --shape"),
    "precision": (["--shape", "llama-2-7b", "--precision", "int3"], "precision 'int3' is not known"),
    "baseline of no shape": (["w4.bundle", "--baseline"], "goes with --shape only"),
    "protocol": (["w4.bundle", "--protocol", "fast"], "protocol 'fast' is not known"),
    "baseline of another model": (["w4.bundle", "--baseline", "other"], "is not the model of"),
    "baseline without a config": (["w4.bundle", "--baseline", "w4.bundle"], "no checkpoint"),
    "unknown peer": (["w4.bundle", "--peer", "vllm=x"], "peer 'vllm' is not known"),
    "peer without a model": (["w4.bundle", "--peer", "llama.cpp"], "no model is given"),
    "peer not installed": (["w4.bundle", "--peer", "llama.cpp=x.gguf"], "needs the Python package 'llama-cpp-python'"),
    "cache of bytes on a processor": (["w4.bundle", "--kv-bits", "8"], "--kv-bits 8: w4.bundle runs on onnxruntime"),
    "plugin-free on a processor": (["w4.bundle", "--plugin-free"], "runtime 'onnxruntime' has no engines without"),
    "too long a context": (["w4.bundle", "--protocol", "realistic"], "nothing was measured: realistic 512 + 128"),
    "old file of another schema": (["w4.bundle", "--compare", "schema.json"], "schema version 0, not 1"),
    "old file missing": (["w4.bundle", "--compare", "none.json"], "No such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(made, monkeypatch, case):
    monkeypatch.chdir(made)
    monkeypatch.setattr("importlib.util.find_spec", _without("llama_cpp"))
    (made / "schema.json").write_text('{"schema": "edge-awq.results/0", "results": []}')
    arguments, words = BAD[case]
    refused = command("bench", *arguments)
    assert refused.code == 1 and words in refused.err
    assert refused.err.count("Error:") == 1 and "Traceback" not in refused.err


def _without(missing):
    import importlib.util

    find = importlib.util.find_spec
    return lambda name, *rest: None if name == missing else find(name, *rest)
