"""edge-awq compile and load, from the outside, on a machine that is faked."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from toy_bundle import CHUNK, MOST_ROWS, Notes, install, make_bundle

from edge_awq.bundle import Bundle
from edge_awq.cli import main
from edge_awq.engine import load_runtime


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_compile_says_what_it_made(bundle, monkeypatch):
    install(monkeypatch)
    done = run("compile", bundle.path)
    assert done.exit_code == 0, done.stderr
    assert f"decode of up to {MOST_ROWS} tokens, prefill of up to {CHUNK} tokens" in done.stderr
    assert "MB of host memory (" in done.stderr and "MB by forecast)" in done.stderr
    assert "tensorrt-10.3.0" in done.stderr
    again = run("compile", bundle.path)
    assert again.exit_code == 0 and "is there" in again.stderr
    assert "compiled in" in run("compile", bundle.path, "--fresh").stderr


def test_each_cache_has_its_engine(bundle, monkeypatch):
    install(monkeypatch)
    assert "-kv8-" in run("compile", bundle.path, "--kv-bits", 8).stderr
    assert "-kv16-" in run("compile", bundle.path).stderr
    assert "is there" in run("compile", bundle.path, "--kv-bits", 8).stderr
    assert run("compile", bundle.path, "--kv-bits", 4).exit_code == 2


def test_failures_are_one_error_with_a_hint(bundle, monkeypatch):
    install(monkeypatch, script={"build": "no kernel"})
    failed = run("compile", bundle.path)
    assert failed.exit_code == 1 and "no kernel" in failed.stderr and "Hint:" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_ctrl_c_is_one_line(bundle, monkeypatch):
    import os
    import signal

    install(monkeypatch, script={"during": lambda: os.kill(os.getpid(), signal.SIGINT)})
    stopped = run("compile", bundle.path)
    assert stopped.exit_code == 1 and "Error: interrupted" in stopped.stderr and "Traceback" not in stopped.stderr
    Bundle.open(bundle.path)


def test_runtime_compiles_when_it_must(bundle, monkeypatch):
    install(monkeypatch)
    progress = Notes()
    load_runtime("tensorrt").open_engine(bundle, None, None, progress).close()
    assert progress.tracked == ["compile decode", "compile prefill"]
    load_runtime("tensorrt").open_engine(bundle, None, None, progress).close()
    assert len(progress.tracked) == 2
