"""The protocol's arithmetic, what makes a run invalid, and how an engine may end."""

import dataclasses
import json
import re
import signal
import sys
from types import SimpleNamespace

import pytest
from fake_workers import Clock, NoMeter, ScriptedWorker, SteadyMeter, bench, entry

from edge_awq.bench.bench import BenchRequest
from edge_awq.bench.engines import EdgeAwq, LoadRequest, is_out_of_memory
from edge_awq.bench.protocols import PROTOCOLS, Case, Conditions, deviation, fitting, invalid_reasons
from edge_awq.bench.worker import Candidate, EngineEnded, Worker, describe_end, oom_kills
from edge_awq.power.energy import PhaseEnergy
from edge_awq.runner import board


def test_figure_is_the_median_step_of_4_and_200(tmp_path):
    worker = ScriptedWorker(Clock(), step_s=[0.5, 0.25, 0.125])
    (result,) = bench(worker, NoMeter(), tmp_path, repeats=3).measure([entry()]).results
    assert (result.prompt_tokens, result.generated_tokens, result.repeats) == (4, 200, 3)
    assert result.tok_s_median == 4.0  # of 2, 4 and 8
    assert result.tok_s_mad == 2.0
    assert result.prefill_tok_s_median == 8.0
    assert result.valid and not result.oom and worker.closed
    assert result.provenance.engine_sha256 == "0" * 64
    assert (result.runtime, result.load_s, result.peak_rss_bytes) == ("onnxruntime 1.23.0", 1.5, 1000)
    assert (result.j_per_token, result.j_per_token_problem, result.idle_w) == (None, "no_power_source", None)
    assert len({tuple(prompt) for prompt in worker.prompts}) == 1


@pytest.mark.parametrize(("asked", "options", "variant"), [
    ({}, {}, None), ({"kv_bits": 16}, {}, None), ({"kv_bits": 8}, {"kv_bits": 8}, "kv-bits 8"),
    ({"plugin_free": True}, {"plugin_free": True}, "plugin-free"),
], ids=str)
def test_the_form_of_our_engine_is_loaded_and_named(tmp_path, monkeypatch, asked, options, variant):
    request = BenchRequest((tmp_path,), **asked)
    assert (request.load_options, request.variant) == (options, variant)
    script = tmp_path / "engine.py"  # tells what it was given, and ends
    script.write_text("import sys\nsys.exit(sys.argv[6])\n")
    monkeypatch.setattr("edge_awq.bench.worker.ENGINES", script)
    with pytest.raises(EngineEnded, match=re.escape(json.dumps(options))):
        Worker(Candidate("edge-awq", tmp_path, options=request.load_options), 1, 16)
    seen = {}
    engine = SimpleNamespace(engine=SimpleNamespace(step_greedy=None))
    monkeypatch.setattr("edge_awq.runner.session.load", lambda model, **given: seen.update(given) or engine)
    EdgeAwq(LoadRequest("model", 0, 16, "gpu", options))
    assert seen == {"threads": None, "context": 16, **options}
    worker = ScriptedWorker(Clock())
    named = dataclasses.replace(entry(), variant=variant)
    (result,) = bench(worker, NoMeter(), tmp_path, repeats=1).measure([named]).results
    assert result.variant == variant


def test_realistic_counts_every_step_and_skips_what_does_not_fit(tmp_path):
    worker = ScriptedWorker(Clock())
    outcome = bench(worker, NoMeter(), tmp_path, "realistic", repeats=1).measure([entry(context=1200), entry()])
    assert [result.prompt_tokens for result in outcome.results] == [512, 1024] * 2  # the shorter context is everyone's
    assert outcome.results[0].tok_s_median == pytest.approx(127 / (0.25 * (126 + 10)))
    assert outcome.results[0].tok_s_mad is None  # one value has no spread
    assert outcome.left_out == ["realistic 2048 + 128: needs a context of 2176, there are 1200",
                                "realistic 4096 + 128: needs a context of 4224, there are 1200"]


def test_energy_is_pooled_over_the_repeats(tmp_path):
    clock = Clock()
    worker = ScriptedWorker(clock, step_s=[0.5, 0.25])
    (result,) = bench(worker, SteadyMeter(clock), tmp_path, repeats=2).measure([entry()]).results
    decode_s = (198 + 10) * (0.5 + 0.25)
    assert result.j_per_token == pytest.approx(20.0 * decode_s / (2 * 199))
    assert (result.idle_w, result.j_per_token_problem, result.provenance.power_scope) == (5.0, None, "cpu-package")
    assert result.valid


def test_too_few_samples_are_no_energy_and_an_invalid_run(tmp_path):
    clock = Clock()
    worker = ScriptedWorker(clock, step_s=[0.001])
    meter = SteadyMeter(clock, interval_s=0.1)
    (result,) = bench(worker, meter, tmp_path, repeats=1).measure([entry()]).results
    assert result.j_per_token is None and result.j_per_token_problem == "phase_too_short"
    assert result.invalid_reasons == ("decode: 2 samples by rapl, no energy (phase_too_short: 10 are needed, so more "
                                      "--repeats or a shorter --meter-interval)",)


def test_throttling_that_the_meter_sees_is_invalid(tmp_path):
    clock = Clock()
    meter = SteadyMeter(clock, throttled=True)
    (result,) = bench(ScriptedWorker(clock), meter, tmp_path, repeats=1).measure([entry()]).results
    assert result.invalid_reasons == ("the meter saw the clocks held down (throttled)",)


def test_a_change_of_the_power_mode_is_invalid(tmp_path, monkeypatch):
    modes = iter([{"name": "MAXN", "id": 0}, {"name": "15W", "id": 2}])
    monkeypatch.setattr(board, "power_mode", lambda root: next(modes))
    (result,) = bench(ScriptedWorker(Clock()), NoMeter(), tmp_path, repeats=1).measure([entry()]).results
    assert not result.valid and "mode_changed" in result.invalid_reasons[0]
    assert result.provenance.power_mode == "MAXN"


def test_busy_machines_are_invalid_where_that_is_known():
    unmeasured = PhaseEnergy()
    assert invalid_reasons(Conditions(load_before=2.0), unmeasured) == (
        "the machine was busy: load average 2.00 before the start, 0.5 at most",)
    assert invalid_reasons(Conditions(load_before=0.5), unmeasured) == ()
    assert invalid_reasons(Conditions(load_before=None), unmeasured) == ()


def test_out_of_memory_is_a_result(tmp_path):
    worker = ScriptedWorker(Clock(), ends_at=1024, oom=True)
    outcome = bench(worker, NoMeter(), tmp_path, "realistic", repeats=2).measure([entry(context=2176)])
    first, second = outcome.results
    assert not first.oom and first.tok_s_median
    assert second.oom and second.prompt_tokens == 1024 and second.tok_s_median is None
    assert outcome.left_out[-1] == "edge-awq w4a16 at 2048 + 128: edge-awq: killed"


def test_an_engine_that_crashes_is_left_out_and_the_others_are_measured(tmp_path):
    workers = iter([ScriptedWorker(Clock(), ends_at=4), ScriptedWorker(Clock())])
    one = bench(None, NoMeter(), tmp_path, repeats=1)
    outcome = dataclasses.replace(one, start=lambda *_: next(workers)).measure([entry("fp16"), entry("w4a16")])
    assert [result.precision for result in outcome.results] == ["w4a16"]
    assert outcome.left_out == ["edge-awq fp16 at 4 + 200: edge-awq: killed"]


def test_every_result_is_kept_as_soon_as_it_is_there(tmp_path):
    kept, worker = [], ScriptedWorker(Clock(), ends_at=1024, oom=True)
    measuring = dataclasses.replace(bench(worker, NoMeter(), tmp_path, "realistic", repeats=1),
                                    keep=lambda outcome: kept.append([one.oom for one in outcome.results]))
    measuring.measure([entry()])
    assert kept == [[False], [False, True]]


def test_fitting_is_exact_at_the_edge():
    assert fitting(PROTOCOLS["figure"], 204) == ((Case(4, 200),), ())
    assert fitting(PROTOCOLS["figure"], 203)[0] == ()


def test_deviation_is_from_the_median():
    assert deviation([1.0, 2.0, 9.0]) == 1.0
    assert deviation([1.0]) is None


@pytest.mark.parametrize(("error", "expected"), [
    (MemoryError(), True), (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
    (RuntimeError("std::bad_alloc"), True), (RuntimeError("shape mismatch"), False), (ValueError("bad"), False),
])
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def engine_script(tmp_path, monkeypatch, body):
    script = tmp_path / "engine.py"
    script.write_text(body)
    monkeypatch.setattr("edge_awq.bench.worker.ENGINES", script)
    with pytest.raises(EngineEnded) as raised:
        Worker(Candidate("edge-awq", tmp_path, sys.executable), 1, 16)
    return raised.value


KILL_ITSELF = f"import os\nos.kill(os.getpid(), {signal.SIGKILL:d})\n"


def test_a_kill_is_out_of_memory_only_where_the_kernel_counted_one(tmp_path, monkeypatch):
    counts = iter([3, 3, 3, 4])
    monkeypatch.setattr("edge_awq.bench.worker.oom_kills", lambda: next(counts))
    by_hand = engine_script(tmp_path, monkeypatch, KILL_ITSELF)
    assert not by_hand.oom and by_hand.message == "edge-awq: the engine was ended by SIGKILL"
    assert engine_script(tmp_path, monkeypatch, KILL_ITSELF).oom


def test_what_a_process_said_last_is_in_the_message(tmp_path, monkeypatch):
    ended = engine_script(tmp_path, monkeypatch, "raise ValueError('no such layer')")
    assert ended.message == "edge-awq: the engine ended with code 1 (ValueError: no such layer)" and not ended.oom
    assert engine_script(tmp_path, monkeypatch, "print('{\"oom\": \"MemoryError: \"}')").oom


def test_the_kernels_count_of_kills(tmp_path):
    assert oom_kills(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 12\noom_kill 7\n")
    assert oom_kills(tmp_path) == 7
    assert describe_end(-signal.SIGSEGV) == "the engine was ended by SIGSEGV"
