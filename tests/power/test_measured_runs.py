"""A run that is measured: request, summary, power.csv, and reading it all back."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from measured import start, tokens
from trees import Board, write

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import Reading, Source
from edge_awq.power.energy import phase_energy
from edge_awq.runner.energy import RequestEnergy, measure_request
from edge_awq.runner.logexport import FORMATS, export_run
from edge_awq.runner.logread import read_run, show_run
from edge_awq.runner.metrics import summarize
from edge_awq.runner.one_line import speed_line
from edge_awq.runner.powerlog import power_columns
from edge_awq.runner.runlog import RunLog


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One measured run at 12 W on an Orin NX; its directory."""
    root = tmp_path_factory.mktemp("machine")
    Board(root, "orin-nx").set_total_w(12)
    write(root / "proc/device-tree/model", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0")
    write(root / "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0")
    write(root / "var/lib/nvpmodel/status", "pmode:0002 fmode:quiet")
    write(root / "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_15W >")
    with start(root) as meter:
        assert meter.idle_span is None
        idle_w = meter.measure_idle(0.4)
        assert meter.idle_span[1] - meter.idle_span[0] >= 4 * 10**8 and idle_w == pytest.approx(12)
        with RunLog(root / "runs", {"model": {"name": "tiny", "family": "llama", "precision": "w4a16"}},
                    meter=meter) as log:
            seen = list(log.record(tokens(), prompt_tokens=8))
            log.summary(summarize(seen, 8, 1.0, 10**9, log.energy.to_dict()), bandwidth_gb_s=102.4)
    return log.path


def events(folder, kind):
    found = (json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines())
    return [event for event in found if event["event"] == kind]


def test_a_request_has_its_joules(measured):
    (request,) = events(measured, "request")
    energy = request["energy"]
    assert energy["prefill_problem"] is None and energy["decode_problem"] is None
    assert energy["prefill_j"] == pytest.approx(12 * request["ttft_ms"] / 1e3, rel=1e-6)
    assert energy["decode_j"] == pytest.approx(12 * request["decode_s"], rel=1e-6)
    assert energy["total_j"] == pytest.approx(energy["prefill_j"] + energy["decode_j"])
    assert energy["above_idle_j"] == pytest.approx(0, abs=1e-6)
    assert energy["mj_per_gen_tok"] == pytest.approx(energy["decode_j"] / 3 * 1e3)
    assert energy["mj_per_prompt_tok"] == pytest.approx(energy["prefill_j"] / 8 * 1e3)
    assert energy["tok_per_j"] == pytest.approx(request["decode_tok_s"] / 12, rel=1e-6)
    assert energy["total_scope"] == "module" and energy["total_rails"] == ["VDD_IN"]
    assert set(energy["rails_j"]) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert request["power"] == {"mean_w": pytest.approx(12), "max_w": 12, "idle_w": pytest.approx(12)}


def test_the_start_names_board_mode_and_meter(measured):
    (start_event,) = events(measured, "start")
    assert start_event["board"] == {"model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
                                    "module": "p3767-0000", "l4t": "36.4.3", "jetpack": "6.2"}
    assert start_event["power_mode"] == {"name": "MODE_15W", "id": 2}
    sampler = start_event["sampler"]
    assert (sampler["backend"], sampler["total_scope"], sampler["interval_asked_s"]) == ("ina3221", "module", 0.02)
    assert sampler["total_rails"] == ["VDD_IN"] and len(sampler["rails"]) == 3


def test_the_summary_has_the_energy_and_the_roof(measured):
    (summary,) = events(measured, "summary")
    assert summary["energy"]["total_j"] == events(measured, "request")[0]["energy"]["total_j"]
    assert summary["bw_ceiling_tok_s"] == pytest.approx(102.4)
    assert summary["bw_achieved_pct"] == pytest.approx(summary["decode_tok_s"] / 102.4 * 100)
    assert summary["valid"] is True and summary["power_mode"] == {"name": "MODE_15W", "id": 2}


def test_power_csv_integrates_to_the_same_joules(measured):
    with (measured / "power.csv").open() as file:
        rows = list(csv.DictReader(file))
    (start_event,), (request,) = events(measured, "start"), events(measured, "request")
    rails = start_event["sampler"]["rails"]
    source = Source("ina3221", None, tuple(rails), total=_total(start_event), interval_s=0.02)
    assert tuple(rows[0]) == power_columns(source)
    assert [int(row["seq"]) for row in rows] == list(range(len(rows)))
    assert [row["phase"] for row in rows if row["phase"]] == sorted(
        (row["phase"] for row in rows if row["phase"]), reverse=True)
    readings = [Reading(int(row["t_ns"]), int(row["began_ns"]), tuple(float(row[f"{rail}_mw"]) for rail in rails))
                for row in rows]
    spans = {phase["name"]: (phase["t_start_ns"], phase["t_end_ns"]) for phase in events(measured, "phase")}
    decode = phase_energy(source, readings, [spans["decode"]])
    assert decode.energy_j == pytest.approx(request["energy"]["decode_j"], rel=1e-6)
    assert all(row["source_uptime_s"] == row["gpu_load_pct"] == "" for row in rows)  # not known, never 0


def _total(start_event):
    from edge_awq.power.base import Total

    return Total(start_event["sampler"]["total_scope"], tuple(start_event["sampler"]["total_rails"]))


def test_the_last_line_says_it_all(measured):
    seen = list(tokens(2, 0.0, 0.1))
    energy = RequestEnergy(meter="jtop", total_scope="module", mj_per_gen_tok=820.0, tok_per_j=1 / 0.82)
    summary = summarize(seen, 8, 1.0, 10**9)
    line = speed_line(summary, energy, 102.4)
    assert "0.82 J/token (module)" in line and "1.22 tok/s per W" in line
    assert "% of the memory roof" in line and "prompt tokens at" in line
    assert "energy not measured, memory" in speed_line(summary, RequestEnergy(), None)
    refused = RequestEnergy(refusal="rapl: energy_uj may not be read")
    assert "energy not measured (rapl: energy_uj may not be read), memory" in speed_line(summary, refused, None)
    assert "memory roof not known" in speed_line(summary, RequestEnergy(), None)
    short = RequestEnergy(meter="jtop", samples_decode=4, decode_problem="phase_too_short")
    assert "not measured (4 samples, 10 are needed" in speed_line(summary, short, None)
    lost = RequestEnergy(meter="jtop", decode_problem="sampler_lost", total_problem="sampler_lost")
    assert "the meter 'jtop' was lost" in speed_line(summary, lost, None)


def test_a_meter_that_dies_leaves_null_and_a_run_that_is_not_valid(tmp_path):
    Board(tmp_path, "orin-nx").set_total_w(12)
    with start(tmp_path) as meter, RunLog(tmp_path / "runs", {}, meter=meter) as log:
        seen = []
        for token in log.record(tokens(), prompt_tokens=8):
            seen.append(token)
            if token.index == 1:
                meter._process.kill()
        log.summary(summarize(seen, 8, 1.0, 10**9, log.energy.to_dict()))
    (request,), (summary,) = events(log.path, "request"), events(log.path, "summary")
    assert request["energy"]["decode_j"] is request["energy"]["total_j"] is request["energy"]["mj_per_gen_tok"] is None
    assert request["energy"]["decode_problem"] == "sampler_lost"
    assert summary["valid"] is False and summary["invalid_reasons"] == ["sampler_lost"]
    assert request["decode_tok_s"] > 0


def test_a_power_mode_that_changes_makes_the_run_not_valid(tmp_path):
    Board(tmp_path, "orin-nx")
    write(tmp_path / "var/lib/nvpmodel/status", "pmode:0000")
    write(tmp_path / "sys/class/hwmon/hwmon8/oc1_event_cnt", "3")
    with start(tmp_path) as meter, RunLog(tmp_path / "runs", {}, meter=meter) as log:
        seen = list(log.record(tokens(2, 0.0, 0.0), prompt_tokens=8))
        write(tmp_path / "var/lib/nvpmodel/status", "pmode:0001")
        write(tmp_path / "sys/class/hwmon/hwmon8/oc1_event_cnt", "5")
        log.summary(summarize(seen, 8, 1.0, 10**9))
    assert events(log.path, "summary")[0]["invalid_reasons"] == ["mode_changed", "throttled"]
    assert "2 throttle events" in next(event for event in events(log.path, "warning")
                                   if event["code"] == "throttled")["text"]


def test_a_disk_that_fills_up_costs_samples_on_file_and_no_traceback(tmp_path, monkeypatch):
    import errno

    from edge_awq.runner.powerlog import PowerLog

    Board(tmp_path, "orin-nx").set_total_w(12)
    with start(tmp_path) as meter, RunLog(tmp_path / "runs", {}, meter=meter) as log:
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(PowerLog, "_write", full)
        seen = list(log.record(tokens(), prompt_tokens=8))
        log.summary(summarize(seen, 8, 1.0, 10**9))
    assert events(log.path, "request")[0]["energy"]["decode_j"] is not None
    assert "power_log_cut" in [event["code"] for event in events(log.path, "warning")]


def test_one_token_has_no_decode_window(tmp_path):
    Board(tmp_path, "orin-nx").set_total_w(12)
    with start(tmp_path) as meter:
        import time

        started_ns = time.monotonic_ns()
        energy = measure_request(meter, started_ns, list(tokens(1)), 8)
    assert energy.prefill_j is not None and energy.decode_j is None and energy.mj_per_gen_tok is None
    assert energy.warnings() == []


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from edge_awq.runner.runlog import RunLog
from measured import start, tokens
root = Path(sys.argv[1])
log = RunLog(root / "runs", {}, meter=start(root))
for token in log.record(tokens(9), prompt_tokens=3):
    if token.index == 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_can_be_read(tmp_path):
    Board(tmp_path, "orin-nx").set_total_w(12)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").iterdir()
    run = read_run(folder)
    assert not run.whole and run.requests == () and run.power_rows > 10
    with (folder / "power.csv").open() as file:
        assert {row["total_w"] for row in csv.DictReader(file)} == {"12.0"}
    assert "cut off" in "\n".join(show_run(run))
    for kind in FORMATS:
        assert export_run(run, kind)


def test_a_run_reads_back(measured):
    run = read_run(measured)
    assert run.whole and len(run.requests) == 1 and read_run(measured / "run.jsonl") == run
    text = "\n".join(show_run(run))
    for word in (measured.name, "tiny", "p3767-0000", "MODE_15W", "ina3221", "VDD_IN", "decode_tok_s"):
        assert word in text


def test_exports_agree(measured):
    run = read_run(measured)
    (request,) = run.requests
    (row,) = csv.DictReader(export_run(run, "csv").splitlines())
    assert float(row["decode_j"]) == request["energy"]["decode_j"] and int(row["n_gen"]) == 4
    assert json.loads(export_run(run, "json"))["requests"] == [request]
    header, rule, line = export_run(run, "md").splitlines()
    assert header.count("|") == rule.count("|") == line.count("|") and "| mj_per_gen_tok |" in header
    prompt, generated = json.loads(export_run(run, "llama-bench"))
    assert (prompt["n_prompt"], prompt["n_gen"]) == (8, 0)
    assert (generated["n_prompt"], generated["n_gen"], generated["n_depth"]) == (0, 3, 8)
    assert generated["avg_ts"] == pytest.approx(request["decode_tok_s"], rel=1e-6)
    assert generated["samples_ns"] == [pytest.approx(request["decode_s"] * 1e9, abs=1)]


@pytest.mark.parametrize("text, words", [
    ("", "is empty"), ('{"event": "start", "sche', "is empty"),
    ('{"event": "start", "schema": "edge-awq.run/9"}\n', "edge-awq.run/9"), ('{"event": "phase"}\n', "schema None"),
    ('{"event": "start", "schema": "edge-awq.run/1"}\nnonsense\n{"event": "summary"}\n', "line 2 is damaged"),
    ("[1]\n[2]\n", "line 1 is damaged"),
], ids=["empty", "cut in the first line", "another schema", "no start", "damaged", "not events"])
def test_logs_that_cannot_be_read_are_one_clear_error(tmp_path, text, words):
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(EdgeAwqError, match=words) as caught:
        read_run(tmp_path)
    assert caught.value.hint


def test_folders_that_are_no_run_are_one_clear_error(tmp_path, measured):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(EdgeAwqError, match=r"no run\.jsonl"):
            read_run(folder)
    with pytest.raises(EdgeAwqError) as caught:
        read_run(measured.parent)
    assert measured.name in caught.value.hint


def test_neither_serial_nor_names_nor_text_are_logged(measured):
    text = "".join(file.read_text() for file in measured.iterdir())
    assert "word1" not in text and "serial" not in text.lower()
    assert os.uname().nodename not in text
