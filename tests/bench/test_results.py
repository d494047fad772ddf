"""Result files and run directories: read back as written, and refused in one line when they cannot be."""

import json

import pytest
from made_results import AGX, result
from made_runs import START, make_run

from edge_awq.bench.results import SCHEMA, read_results, write_results
from edge_awq.bench.runs import find_runs, read_run
from edge_awq.errors import EdgeAwqError


def test_results_come_back(tmp_path):
    path = tmp_path / "r.json"
    written = [result(**AGX), result(**AGX, oom=True), result(**AGX, valid=False, invalid_reasons=("it throttled",))]
    write_results(path, written)
    assert [one.result for one in read_results(path)] == written
    assert json.loads(path.read_text())["schema"] == SCHEMA


def damaged(tmp_path, change):
    path = tmp_path / "r.json"
    write_results(path, [result(**AGX)])
    path.write_text(change(path.read_text()))
    return path


@pytest.mark.parametrize(("change", "words"), [
    (lambda text: "", ["empty"]),
    (lambda text: text[:-40], ["cut off"]),
    (lambda text: text.replace("results/1", "results/2"), ["schema version 2, not 1"]),
    (lambda text: "{}", ["no result file"]),
    (lambda text: "[1]", ["no result file"]),
    (lambda text: json.dumps({"schema": SCHEMA, "results": []}), ["no results"]),
    (lambda text: text.replace('"repeats"', '"repeat"'), ["result 1", "repeat, repeats"]),
    (lambda text: text.replace('"repeats": 5', '"repeats": "five"'), ["repeats", "whole number"]),
    (lambda text: text.replace('"w4a16"', '"w3a16"'), ["w3a16"]),
    (lambda text: text.replace('"oom": false', '"oom": true'), ["oom"]),
    (lambda text: text.replace('"tok_s_median": 40.0', '"tok_s_median": 0'), ["no rate"]),
    (lambda text: text.replace('"valid": true', '"valid": false'), ["reasons"]),
], ids=["empty", "cut", "version", "other", "list", "none", "key", "type", "precision", "oom", "zero", "invalid"])
def test_refused_results(tmp_path, change, words):
    with pytest.raises(EdgeAwqError) as caught:
        read_results(damaged(tmp_path, change))
    text = f"{caught.value.message} {caught.value.hint}"
    assert all(word in text for word in words), text
    assert "\n" not in text and caught.value.hint


def test_a_run_comes_back(tmp_path):
    run = read_run(make_run(tmp_path))
    assert [(phase.name, phase.start_s, phase.end_s) for phase in run.phases] == [("prefill", 1.0, 1.5),
                                                                                   ("decode", 1.5, 3.0)]
    assert run.power_w == (10.0, None, 12.0) and run.power_s == (-0.1, 0.1, 0.2)
    assert run.rails_w == {"VDD_IN": (10.0, None, 12.0)}
    assert run.token_s == (1.5, 1.6)
    assert (run.power_mode, run.power_scope, run.cut_off, len(run.requests)) == ("MAXN", "module", False, 1)


def test_a_run_cut_off_in_its_last_line_is_read(tmp_path):
    folder = make_run(tmp_path)
    with (folder / "run.jsonl").open("a") as file:
        file.write('{"event": "summ')
    with (folder / "power.csv").open("a") as file:
        file.write("3000")
    run = read_run(folder)
    assert run.cut_off and len(run.power_s) == 3


def test_a_run_without_meter_has_no_power(tmp_path):
    folder = make_run(tmp_path)
    (folder / "power.csv").unlink()
    assert read_run(folder).power_w == ()


@pytest.mark.parametrize("file", ["power.csv", "tokens.csv"])
def test_a_run_killed_before_a_file_had_its_first_line(tmp_path, file):
    folder = make_run(tmp_path)
    (folder / file).write_text("")
    run = read_run(folder)
    assert {"power.csv": run.power_s, "tokens.csv": run.token_s}[file] == ()


def test_runs_below_the_folder_of_the_log_option(tmp_path):
    folder = make_run(tmp_path)
    assert find_runs(tmp_path) == find_runs(folder) == [folder]


def test_the_runner_s_own_log_is_read(tmp_path):
    from edge_awq.runner.generate import Token
    from edge_awq.runner.metrics import summarize
    from edge_awq.runner.runlog import RunLog

    tokens = [Token(i, 7, "x", 0.1 * (i + 1), 0.1 * (i + 1), None) for i in range(3)]
    with RunLog(tmp_path, {"power_mode": {"name": "15W", "id": 0}}) as log:
        assert list(log.record(iter(tokens), 4)) == tokens
        log.summary(summarize(tokens, 4))
    run = read_run(log.path)
    assert [phase.name for phase in run.phases] == ["prefill", "decode"] and len(run.token_s) == 3
    assert (run.power_mode, run.power_w) == ("15W", ())


def write_lines(folder, *lines):
    (folder / "run.jsonl").write_text("\n".join(lines) + "\n" if lines else "")


@pytest.mark.parametrize(("break_it", "words"), [
    (lambda folder: (folder / "run.jsonl").unlink(), ["not a run directory", "run.jsonl"]),
    (write_lines, ["empty"]),
    (lambda folder: write_lines(folder, json.dumps({**START, "schema": "edge-awq.run/9"})), ["run/9", "run/1"]),
    (lambda folder: write_lines(folder, json.dumps(START)), ["no request"]),
    (lambda folder: write_lines(folder, json.dumps(START)[:20]), ["empty"]),
    (lambda folder: write_lines(folder, json.dumps(START), "{", "{}"), ["line 2 is damaged"]),
    (lambda folder: (folder / "power.csv").write_text("a,b\n1,2\n"), ["power.csv", "t_ns"]),
    (lambda folder: (folder / "power.csv").write_text("t_ns,total_w\n1,x\n"), ["the run is damaged", "'x'"]),
    (lambda folder: write_lines(folder, *(json.dumps(event) for event in (START, {"event": "phase"}))), ["damaged"]),
], ids=["no-log", "empty", "version", "no-request", "no-start", "damaged", "columns", "values", "keys"])
def test_refused_runs(tmp_path, break_it, words):
    folder = make_run(tmp_path)
    break_it(folder)
    with pytest.raises(EdgeAwqError) as caught:
        read_run(folder)
    text = f"{caught.value.message} {caught.value.hint}"
    assert all(word in text for word in words), text
