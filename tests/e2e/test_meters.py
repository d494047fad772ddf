"""Meters and run logs through the command line, over a sensor tree."""

import json
import os
import sys
from pathlib import Path

import pytest
from models import assert_refused, command, make_model

sys.path.insert(0, str(Path(__file__).parents[1] / "power"))
from trees import Board, add_battery, add_rapl, write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metered")
    make_model(folder / "model")
    assert command("build", folder / "model", "-o", folder / "b", "--recipe", "rtn").code == 0
    return folder / "b"


def measure(bundle, root, *options):
    return command("run", bundle, "-p", "The fox", "-n", 200, "--ignore-eos", "--meter-root", root, *options)


@pytest.fixture
def nano(tmp_path):
    Board(tmp_path, "orin-nx").set_total_w(12)
    return tmp_path


def test_json_has_an_energy_object(bundle, nano):
    energy = json.loads(measure(bundle, nano, "--meter", "ina3221", "--meter-interval", 0.005, "--json").out)["energy"]
    assert (energy["meter"], energy["total_scope"], energy["total_rails"]) == ("ina3221", "module", ["VDD_IN"])
    # How many samples fit depends on how fast this machine is; what is given must be right.
    assert (energy["decode_j"] is None) == (energy["decode_problem"] is not None)
    if energy["total_j"] is not None:
        assert energy["mean_w"] == pytest.approx(12)


def test_without_a_meter_it_is_null(bundle, nano):
    assert json.loads(measure(bundle, nano, "--meter", "none", "--json").out)["energy"] is None


def test_auto_on_a_jetson_goes_on_without_jetson_stats(bundle, nano):
    result = measure(bundle, nano, "--meter", "auto", "--log", nano / "runs", "--meter-interval", 0.01)
    assert result.code == 0 and "[" in result.err
    (run,) = (nano / "runs").iterdir()
    shown = command("log", "show", run).out
    assert "ina3221, every 0.01 s, total = module: VDD_IN" in shown and "meter_skipped: jtop" in shown
    exported = json.loads(command("log", "export", run, "--format", "json").out)
    assert exported["summary"]["tokens"] == 200 and exported["whole"]
    assert command("log", "export", run).out.startswith("| rep |")
    assert command("log", "export", run, "--format", "csv").out.startswith("rep,")
    assert json.loads(command("log", "export", run, "--format", "llama-bench").out)[1]["n_gen"] == 199


def locked(root):
    """A processor's counter that this user may not read; root may read everything, but no link to nowhere."""
    counter = add_rapl(root, {"package-0": 0}) / "intel-rapl:0/energy_uj"
    if os.getuid() != 0:
        counter.chmod(0)
    else:
        counter.unlink()
        counter.symlink_to(root / "nowhere")
    return root


@pytest.mark.parametrize("verb", ["run", "bench"])
def test_a_counter_that_may_not_be_read(bundle, tmp_path, verb):
    root, prompt = locked(tmp_path), ("-p", "The fox") if verb == "run" else ()
    named = command(verb, bundle, *prompt, "--meter-root", root, "--meter", "rapl")
    assert_refused(named, "energy_uj may not be read", "70-rapl.rules", "chgrp power")
    auto = command(verb, bundle, *prompt, "--meter-root", root, "--meter", "auto")
    assert auto.code == 0 and "energy_uj may not be read" in auto.out + auto.err


def test_a_run_has_its_idle_phase_and_text_only_for_those_who_ask(bundle, nano):
    for number, more in enumerate(((), ("--log-text",))):
        done = measure(bundle, nano, "--meter", "ina3221", "--meter-interval", 0.01, "--meter-idle", 0.3,
                       "--log", nano / f"runs{number}", *more)
        assert done.code == 0, done.err
        (run,) = (nano / f"runs{number}").iterdir()
        events = [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]
        phases = {event["name"]: event for event in events if event["event"] == "phase"}
        assert list(phases) == ["load", "idle", "prefill", "decode"]
        assert phases["idle"]["t_end_ns"] - phases["idle"]["t_start_ns"] >= 0.3e9
        assert phases["load"]["t_end_ns"] <= phases["idle"]["t_start_ns"]
        assert phases["idle"]["t_end_ns"] <= phases["prefill"]["t_start_ns"]
        texts = [event for event in events if event["event"] == "text"]
        assert [event["prompt"] for event in texts] == (["The fox"] if more else [])
        assert not texts or done.out.startswith(texts[0]["answer"])
        assert command("log", "show", run).code == 0
    assert measure(bundle, nano, "--log-text").code == 2


@pytest.mark.parametrize("meter, words", [
    ("wattmeter", ("'wattmeter' is not known", "jtop, ina3221")), ("rapl", ("no energy counter", "or none")),
    ("battery", ("does not run on it", "unplug")), ("nvml", ("on Jetson", "--meter jtop")),
    ("jtop", ("jtop: ",)),
])
def test_a_meter_that_cannot_measure(bundle, nano, meter, words):
    add_battery(nano, status="Full")
    assert_refused(measure(bundle, nano, "--meter", meter), *words)


@pytest.mark.parametrize("interval", [0, -0.1, 1000])
def test_intervals_that_are_not_possible(bundle, nano, interval):
    assert_refused(measure(bundle, nano, "--meter-interval", interval), "meter interval", "seconds")


def test_a_root_that_is_not_there(bundle, tmp_path):
    assert measure(bundle, tmp_path / "missing").code == 2


@pytest.mark.parametrize("verb", ["show", "export"])
def test_runs_that_cannot_be_read(tmp_path, verb):
    assert_refused(command("log", verb, tmp_path), "no run.jsonl", "--log DIR")
    write(tmp_path / "run.jsonl", '{"event": "start", "schema": "edge-awq.run/7"}')
    assert_refused(command("log", verb, tmp_path), "edge-awq.run/7", "tool_version")


def test_an_unknown_format_is_misuse(tmp_path):
    assert command("log", "export", tmp_path, "--format", "xml").code == 2
