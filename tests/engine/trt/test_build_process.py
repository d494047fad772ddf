"""Compiling and the process that does it: signals, progress, several engines in one, what TensorRT says."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from toy_bundle import install, make_bundle

from edge_awq.engine.trt import compile_bundle, open_engine
from edge_awq.engine.trt.bindings import load_toolkit
from edge_awq.engine.trt.build_progress import Phases


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


def engines(bundle):
    folder = bundle.path / "engines"
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


@pytest.mark.parametrize("with_monitor", [True, False])
def test_ctrl_c_during_a_build_stops_it_and_stores_nothing(bundle, monkeypatch, with_monitor):
    def press():
        os.kill(os.getpid(), signal.SIGINT)

    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("outer"))
    try:
        script = {"during": press}
        cuda = install(monkeypatch, script=script)
        if not with_monitor:
            monkeypatch.delattr(sys.modules["tensorrt"], "IProgressMonitor")
            original = sys.modules["tensorrt"].Builder.build_serialized_network
            monkeypatch.setattr(sys.modules["tensorrt"].Builder, "build_serialized_network",
                                lambda *args: (press(), original(*args))[1])
        with pytest.raises(KeyboardInterrupt):
            compile_bundle(bundle.path)
    finally:
        assert signal.signal(signal.SIGINT, before) is not signal.default_int_handler  # the outer one was put back
    assert not heard and cuda.is_closed
    assert script.get("steps") == (1 if with_monitor else None)  # TensorRT was told to stop at once
    assert not [name for name in engines(bundle) if not name.endswith(".timings")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_during_a_build_ends_it_and_stores_nothing(bundle, monkeypatch, number):
    """As the command line takes it. In the second of two passes, where a refusal would be no failure."""
    heard = []

    def interrupt(number, frame):
        heard.append(number)
        raise KeyboardInterrupt

    def begin_second(*_):
        script["during"] = lambda: os.kill(os.getpid(), number)

    script = {}
    install(monkeypatch, script=script)
    monkeypatch.setattr("edge_awq.engine.trt.build._Timings.write", begin_second)
    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            compile_bundle(bundle.path)
    finally:
        assert signal.signal(number, before) is interrupt
    assert heard == [number] and len(script["configs"]) == 2 and not engines(bundle)


def test_one_process_has_one_log_and_loads_the_plugins_once(bundle, monkeypatch):
    """TensorRT keeps the address of the first log, and its registry refuses a library that it has."""
    install(monkeypatch)
    first, second = load_toolkit(), load_toolkit()
    assert first.log is second.log
    assert compile_bundle(bundle.path) is not None
    for engine in [open_engine(bundle), open_engine(bundle)]:
        engine.close()


def test_the_log_of_a_long_run_stays_small(monkeypatch):
    install(monkeypatch)
    log, severities = load_toolkit().log, sys.modules["tensorrt"].ILogger.Severity
    for number in range(1000):
        log.log(severities.WARNING, f"warning {number}")
    assert log.why() == "warning 999" and len(log.warnings) == 1
    for number in range(1000):
        log.log(severities.ERROR, f"error {number}")
    assert log.why() == "error 0" and len(log.errors) == 100


def test_phases_add_up_to_the_whole():
    phases = Phases()
    phases.start("a", None, 2)
    assert phases.share() == 0
    phases.start("b", "a", 4)
    phases.step("b", 0)
    assert phases.share() == 1 / 8
    phases.step("b", 3)
    phases.finish("b")
    phases.step("a", 0)
    assert phases.share() == 1 / 2
    phases.step("never started", 3)
    phases.step("a", 1)
    assert phases.share() == 1
