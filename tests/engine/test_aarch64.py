"""onnxruntime's kernels for aarch64, emulated, against those of this machine: models of all kinds, both ways.

Emulation shows that the kernels take our shapes and compute what they should. It says nothing of speed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from built import build, relative_l2
from compiled import ALL_FLOAT, ALL_INT8, IDS
from emulated_logits import find_logits
from test_ort_engine import FLOAT_LIMIT, INT8_LIMIT

from edge_awq.engine.ort.compile import compile_bundle
from edge_awq.engine.ort.engine import EngineSettings, OrtEngine
from emulated import NEWEST, ORIN, emulated, with_older_onnxruntime
from tiny import UNGROUPED

SCRIPT = Path(__file__).with_name("emulated_logits.py")
ARCHITECTURES = ("llama3", "mistral", "qwen2", "qwen3", "mpt-112", "mpt-clipped", "falcon-71-heads", "falcon-40b",
                 "falcon-11b", "phi3-longrope", "gpt-neox", "gpt-neox-sequential", "opt", "gemma2", "gemma3",
                 "olmo2", "cohere2", "nemotron")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(scope="module")
def models(machine, tmp_path_factory):
    """Folders by architecture, with engines/float.onnx, engines/int8.onnx and what each gives on emulated aarch64."""
    folders = {}
    for architecture in ARCHITECTURES:
        folder = folders[architecture] = tmp_path_factory.mktemp(architecture)
        bits = 16 if architecture in UNGROUPED else 4
        build(folder, architecture, bits, min(2 * bits, 16))
        for name, limit in (("float", ALL_FLOAT), ("int8", ALL_INT8)):
            report = compile_bundle(folder, IDS[:24], limit)
            (folder / report.file).rename(folder / f"engines/{name}.onnx")
    run_all(machine, folders.values(), ORIN)
    return folders


def run_all(machine, folders, cpu):
    done = machine.run(SCRIPT, json.dumps(IDS), *folders, cpu=cpu)
    assert done.returncode == 0, done.stderr


def check(folder):
    """Float32 differs in the order of sums alone; int8 may round any value the other way, so has int8's own limit."""
    engine = OrtEngine(folder / "engines/float.onnx", folder / "weights.safetensors", EngineSettings(len(IDS), 7))
    expected = find_logits(engine, IDS)
    engine.close()
    for name, limit in (("float", FLOAT_LIMIT), ("int8", INT8_LIMIT)):
        error = relative_l2(np.load(folder / f"engines/{name}.npy"), expected)
        assert error < limit, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_give_the_logits_of_this_machine(models, architecture):
    check(models[architecture])


def test_a_processor_with_newer_instructions_does_too(machine, models):
    again(machine, [models["llama3"]], NEWEST)


def test_the_last_onnxruntime_for_python_3_10_does_too(machine, models):
    """It counts windows otherwise."""
    again(with_older_onnxruntime(machine), [models[name] for name in ("llama3", "mistral", "gemma2")], ORIN)


def again(machine, folders, cpu):
    for folder in folders:
        for found in (folder / "engines").glob("*.npy"):
            found.unlink()
    run_all(machine, folders, cpu)
    for folder in folders:
        check(folder)
