"""The shell scripts: which interpreter they take, what they say when there is none, and that they install only once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SCRIPTS = [TOP / name for name in ("scripts/quickstart", "scripts/test", "scripts/environment.sh",
                                   "scripts/jtop_environments", ".ci/run")]
# Stands for an environment's interpreter: passes every check except that of CHECK, and notes what pip is asked for.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1" in
    -c) exit "${CHECK:-0}" ;;
    --version) echo "Python 3.9.1" ;;
    -m) echo "$*" >>"$(dirname "$0")/../calls" ;;
esac
"""


def prepare(**environment):
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = "set -euo pipefail; source scripts/environment.sh; prepare_environment test"
    return subprocess.run(["bash", "-c", command], cwd=TOP, env={**kept, **environment}, capture_output=True, text=True,
                          check=False)


@pytest.fixture
def venv(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return tmp_path / "venv"


def installs(venv):
    calls = venv / "calls"
    return [line for line in calls.read_text().splitlines() if " install " in line] if calls.exists() else []


def test_second_call_installs_nothing(venv):
    assert prepare(EDGE_AWQ_VENV=str(venv)).returncode == 0
    first = installs(venv)
    assert "torch==2.13.0" in first[0] and "-e .[test]" in first[1]
    assert prepare(EDGE_AWQ_VENV=str(venv)).returncode == 0
    assert installs(venv) == first


def test_active_environment_is_used(venv):
    assert prepare(VIRTUAL_ENV=str(venv)).returncode == 0
    assert installs(venv)


def test_torch_comes_from_the_index_that_is_asked_for(venv):
    prepare(EDGE_AWQ_VENV=str(venv), EDGE_AWQ_TORCH_INDEX="https://example.invalid/cpu")
    torch, package = installs(venv)
    assert "--index-url https://example.invalid/cpu torch" in torch
    assert "--index-url" not in package


def test_environment_of_another_python_is_refused(venv):
    result = prepare(EDGE_AWQ_VENV=str(venv), CHECK="1")
    assert result.returncode == 1
    assert "has Python 3.9.1, 3.10 to 3.13 is needed" in result.stderr
    assert not installs(venv)


def test_unusable_interpreter_is_named(tmp_path):
    result = prepare(EDGE_AWQ_VENV=str(tmp_path / "new"), PYTHON="/nowhere/python")
    assert result.returncode == 1
    assert "PYTHON=/nowhere/python is not a Python 3.10 to 3.13" in result.stderr
    assert not (tmp_path / "new").exists()


def test_environment_is_made_with_the_interpreter_given(tmp_path):
    made = "set -euo pipefail; source scripts/environment.sh; make_environment " + str(tmp_path / "new")
    subprocess.run(["bash", "-c", made], cwd=TOP, env={**os.environ, "PYTHON": sys.executable}, check=True)
    assert (tmp_path / "new" / "bin" / "python").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; apt-get install shellcheck")
    subprocess.run(["shellcheck", "-x", str(script)], cwd=TOP, check=True)
