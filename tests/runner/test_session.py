"""The Python API over a bundle on disk, with a scripted engine behind it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from edge_awq.bundle import Manifest, seal
from edge_awq.errors import EdgeAwqError
from edge_awq.export.ops import CONTRACT_VERSION
from edge_awq.runner import session as module
from edge_awq.runner.sampling import SamplingSettings
from edge_awq.runner.session import load
from edge_awq.runner.vocabulary import read_vocabulary
from edge_awq.weights import TensorSpec, WeightsWriter
from fakes import FakeClock, FakeEngine
from tokenizers_made_here import train_byte_level

TOKENIZER = train_byte_level()
BOS, EOS = (TOKENIZER.token_to_id(text) for text in ("<|begin|>", "<|end|>"))
TOKENIZER.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", BOS)])
FILES = {
    "tokenizer_config.json": {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"},
                              "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }};{% endfor %}"},
    "generation_config.json": {"eos_token_id": [EOS, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9},
}


def ids_of(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def write_folder(folder, **changes):
    folder.mkdir()
    TOKENIZER.save(str(folder / "tokenizer.json"))
    for name, table in {**FILES, **changes}.items():
        if table is not None:
            (folder / name).write_text(json.dumps(table))
    return folder


@pytest.fixture
def bundle(tmp_path):
    folder = write_folder(tmp_path / "partial")
    with WeightsWriter(folder / "weights.safetensors", [TensorSpec("embed.weight", "F16", (10, 4)),
                                                        TensorSpec("final_norm.weight", "F32", (4,))]):
        pass
    manifest = Manifest(
        name="tiny", source="tiny", revision=None, family="llama", precision="w4a16", config={}, context=64,
        prefill_chunk=16, target="cpu", runtime="onnxruntime", contract_version=CONTRACT_VERSION,
        quant={"recipe": "awq", "group_size": 64, "calibration": "/home/somebody/private.txt"}, report=[], engine=None,
        tool_versions={}, fingerprint="f" * 8)
    return seal(folder, manifest, tmp_path / "tiny.bundle").path


@pytest.fixture
def opened(monkeypatch):
    """What the runtime was asked to open, and the engine that it gave."""
    seen = SimpleNamespace(script=[*ids_of("the fox\nruns"), EOS, *[7] * 50])

    def open_engine(bundle, threads, context, progress, kv_bits=None):
        seen.bundle, seen.threads, seen.context, seen.kv_bits = bundle, threads, context, kv_bits
        seen.engine = FakeEngine(seen.script, FakeClock(), context or bundle.manifest.context)
        seen.engine.provenance = {"file": "engines/toy.onnx", "runtime_version": "9.9"}
        return seen.engine

    runtimes = {"onnxruntime": SimpleNamespace(open_engine=open_engine)}
    monkeypatch.setattr(module, "load_runtime", lambda kind, plugin_free: runtimes[kind])
    return seen


def text_of(tokens):
    return "".join(token.text for token in tokens)


def test_load_opens_the_engine_as_asked_and_closes_it(bundle, opened):
    with load(bundle, threads=3, context=32, kv_bits=8) as session:
        assert (opened.bundle.path, opened.threads, opened.context, opened.kv_bits) == (bundle, 3, 32, 8)
        assert session.loaded.load_s > 0
    assert opened.engine.closed


def test_a_closed_session_says_so(bundle, opened):
    session = load(bundle)
    session.close()
    session.close()
    for act in (lambda: list(session.generate("x")), lambda: session.prefill([1]), session.reset):
        with pytest.raises(EdgeAwqError, match="this session is closed"):
            act()


def test_a_damaged_bundle_is_refused_before_anything_is_opened(bundle, opened):
    with (bundle / "tokenizer.json").open("r+") as file:
        file.write("X")
    with pytest.raises(EdgeAwqError, match=r"tokenizer\.json is damaged"):
        load(bundle)
    assert not hasattr(opened, "engine")


def test_prefill_and_step_give_logits_of_the_whole_vocabulary(bundle, opened):
    with load(bundle) as session:
        logits = session.prefill([1, 2, 3])
        assert (logits.shape, logits.dtype) == ((opened.engine.vocab_size,), np.float32)
        assert logits.argmax() == opened.script[0]
        assert session.step(int(logits.argmax())).argmax() == opened.script[1]
        assert session.engine.length == 4
        session.reset()
        assert session.engine.length == 0


def test_generate_takes_text_or_ids_and_starts_afresh(bundle, opened):
    with load(bundle) as session:
        session.prefill([1, 2])
        opened.engine.fed.clear()
        tokens = list(session.generate("a prompt", temperature=0))
        assert opened.engine.fed[: len(session.encode("a prompt"))] == session.encode("a prompt")
        assert session.decode([token.token_id for token in tokens]) == text_of(tokens) != ""
        assert tokens[-1].finish_reason == "eos"
        list(session.generate(session.encode("x"), max_tokens=2, temperature=0))
        assert session.engine.length == len(session.encode("x")) + 1


def test_stop_strings_may_be_a_list(bundle, opened):
    with load(bundle) as session:
        tokens = list(session.generate("x", temperature=0, stop=["fox"]))
    assert not text_of(tokens).endswith("fox")
    assert tokens[-1].finish_reason == "stop"


def test_chat_renders_the_template_without_a_second_begin_token(bundle, opened):
    with load(bundle) as session:
        list(session.chat([{"role": "user", "content": "hi"}], max_tokens=1))
        assert opened.engine.fed == [BOS, *ids_of("hi;")]
        assert session.encode_chat([{"role": "user", "content": "hi"}]) == opened.engine.fed


def test_the_summary_counts_prompt_and_answer(bundle, opened):
    with load(bundle) as session:
        for prompt_ids, count in ([1, 2, 3], 5), ([1], 1):
            summary = session.summarize(list(session.generate(prompt_ids, max_tokens=count, ignore_eos=True)))
            assert (summary.prompt_tokens, summary.tokens) == (len(prompt_ids), count)
        assert summary.load_s == session.loaded.load_s
        assert summary.weight_bytes_per_token == 10 * 4 * 2 + 4 * 4


def test_an_empty_prompt_is_the_begin_token(bundle, opened):
    with load(bundle) as session:
        tokens = list(session.generate("", max_tokens=1))
        assert opened.engine.fed == [BOS]
        assert session.summarize(tokens).prompt_tokens == 1


def test_settings_come_from_the_model_and_can_be_changed(bundle, opened):
    with load(bundle) as session:
        assert session.settings().sampling == SamplingSettings(temperature=0.6, top_p=0.9)
        assert session.settings().eos_ids == (EOS, 5)
        changed = session.settings(temperature=0, seed=3, max_tokens=7, ignore_eos=True)
        assert changed.sampling == SamplingSettings(temperature=0, top_p=0.9, seed=3)
        assert (changed.max_tokens, changed.ignore_eos) == (7, True)
        with pytest.raises(EdgeAwqError, match="temprature"):
            session.settings(temprature=1)


def test_a_filter_switches_a_greedy_model_to_sampling(tmp_path, bundle, opened):
    with load(bundle) as session:
        session.vocabulary = read_vocabulary(write_folder(tmp_path / "greedy", **{"generation_config.json": {}}))
        assert session.settings().sampling.temperature == 0
        assert session.settings(seed=1).sampling.temperature == 0
        assert session.settings(top_k=5).sampling.temperature == 1
        assert session.settings(top_k=5, temperature=0.3).sampling.temperature == 0.3


def test_the_log_of_a_session(tmp_path, bundle, opened):
    with load(bundle, threads=2) as session:
        settings = session.settings(stop=("secret",), max_tokens=3)
        with session.open_log(tmp_path / "runs", settings) as log:
            tokens = list(log.record(session.generate("private words", settings), prompt_tokens=4))
            log.summary(session.summarize(tokens))
    lines = (log.path / "run.jsonl").read_text()
    events = [json.loads(line) for line in lines.splitlines()]
    assert [event["event"] for event in events] == ["start", "phase", "warning", "phase", "phase", "request", "summary"]
    start, load_phase = events[:2]
    assert start["model"]["name"] == "tiny" and start["model"]["quant"]["group_size"] == 64
    assert start["settings"] == {"threads": 2, "max_tokens": 3, "ignore_eos": False, "stop_strings": 1,
                                 "has_form": False}
    assert start["sampling"]["top_p"] == 0.9
    engine = start["engine"]
    assert (engine["runtime"], engine["runtime_version"], engine["passes"]) == ("onnxruntime", "9.9", None)
    assert engine["file"] == "engines/toy.onnx"
    assert load_phase["t_end_ns"] == round(session.loaded.load_s * 1e9)
    assert events[3]["t_start_ns"] >= load_phase["t_end_ns"]
    for word in ("secret", "private", "somebody"):
        assert word not in lines


def test_a_second_turn_runs_and_logs_only_what_is_new(tmp_path, bundle, opened):
    with load(bundle) as session:
        settings = session.settings(max_tokens=3, ignore_eos=True, temperature=0)
        first = list(session.generate([1, 2, 3, 4], settings))
        opened.engine.fed.clear()
        prompt = [1, 2, 3, 4, first[0].token_id, first[1].token_id, 8, 9]
        with session.open_log(tmp_path / "runs", settings) as log:
            tokens = session.generate(prompt, settings)
            run_tokens = len(prompt) - session.reused_tokens
            tokens = list(log.record(tokens, run_tokens, session.reused_tokens))
            summary = session.summarize(tokens)
            log.summary(summary)
    assert opened.engine.fed[:2] == [8, 9]
    assert (summary.prompt_tokens, summary.reused_tokens) == (8, 6)
    request, logged = [json.loads(line) for line in (log.path / "run.jsonl").read_text().splitlines()][-2:]
    assert (request["n_prompt"], request["n_ctx_start"]) == (2, 6)
    assert (logged["prompt_tokens"], logged["reused_tokens"]) == (8, 6)


@pytest.mark.parametrize(("table", "expected"), [
    ({"eos_token_id": 3}, (3,)), ({"eos_token_id": [3, 4]}, (3, 4)), ({"eos_token_id": None}, (EOS,)), (None, (EOS,)),
], ids=["number", "list", "null", "no-file"])
def test_end_tokens_come_from_the_generation_config_else_the_tokenizer(tmp_path, table, expected):
    assert read_vocabulary(write_folder(tmp_path / "m", **{"generation_config.json": table})).eos_ids == expected


def test_a_model_without_special_tokens_or_template(tmp_path):
    nothing = {"generation_config.json": None, "tokenizer_config.json": None}
    folder = write_folder(tmp_path / "m", **nothing)
    train_byte_level().save(str(folder / "tokenizer.json"))
    vocabulary = read_vocabulary(folder)
    assert (vocabulary.bos_id, vocabulary.eos_ids, vocabulary.chat) == (None, (), None)
    assert vocabulary.encode("") == []
    with pytest.raises(EdgeAwqError, match="no chat template"):
        vocabulary.encode_chat([{"role": "user", "content": "hi"}])


def test_an_empty_text_begins_even_where_the_tokenizer_adds_nothing(tmp_path):
    folder = write_folder(tmp_path / "m")
    train_byte_level().save(str(folder / "tokenizer.json"))
    assert read_vocabulary(folder).encode("") == [BOS]
    assert read_vocabulary(folder).encode("a") == ids_of("a")


def test_text_that_is_no_unicode_is_refused(tmp_path):
    vocabulary = read_vocabulary(write_folder(tmp_path / "m"))
    with pytest.raises(EdgeAwqError, match="character 3"):
        vocabulary.encode("abc\udcff")
    with pytest.raises(EdgeAwqError, match="Unicode"):
        vocabulary.encode_chat([{"role": "user", "content": "\udcff"}])


@pytest.mark.parametrize("entry", ["</s>", [1, "2"], True, 1.5], ids=str)
def test_malformed_end_tokens_are_refused(tmp_path, entry):
    folder = write_folder(tmp_path / "m", **{"generation_config.json": {"eos_token_id": entry}})
    with pytest.raises(EdgeAwqError, match="generation_config"):
        read_vocabulary(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_files_are_refused_by_name(tmp_path, name):
    folder = write_folder(tmp_path / "m")
    (folder / name).write_text("{")
    with pytest.raises(EdgeAwqError, match=name):
        read_vocabulary(folder)


@pytest.mark.parametrize("lookup", [-1, 1.5, True])
def test_impossible_lookup(bundle, opened, lookup):
    with pytest.raises(EdgeAwqError, match=f"lookup = {lookup}"):
        load(bundle, lookup=lookup)
