"""edge-awq doctor: what is tried, and what comes of it, on machines that stand-ins play."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from models import command

from edge_awq.detect import Machine
from edge_awq.doctor import examine
from edge_awq.errors import EdgeAwqError

sys.path.insert(0, str(Path(__file__).parents[1] / "power"))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine/trt"))
from fake_cuda import ORIN
from toy_bundle import install
from trees import Board, write

JETSON = ("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234")


def found(machine):
    """State and text by subject."""
    return {finding.subject: (finding.state, finding.text, finding.hint) for finding in examine(machine)}


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_AWQ_METER_ROOT", str(tmp_path))
    return Machine(None, (), (), 8 << 30, None, None)


@pytest.fixture
def jetson(tmp_path, monkeypatch):
    Board(tmp_path, "agx-orin").set_total_w(12)
    monkeypatch.setenv("EDGE_AWQ_METER_ROOT", str(tmp_path))
    return Machine("Jetson AGX Orin", JETSON, (ORIN,), 62 << 30, "MODE_30W", 900.0)


def test_a_laptop_without_a_gpu_lacks_nothing_that_it_needs(laptop):
    things = found(laptop)
    assert things["machine"][1].startswith("cpu: ") and "8.0 GiB" in things["machine"][1]
    assert things["target cpu"][0] == things["edge-awq build"][0] == "ok"
    assert things["targets for GPUs"][0] == "-" and "pycuda" not in things
    assert not {finding.state for finding in examine(laptop)} & {"no"}


def test_packages_that_are_missing_name_their_extra(laptop, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    state, text, hint = found(laptop)["edge-awq build"]
    assert (state, text, hint) == ("-", "torch is not installed", "pip install 'edge-awq[quantize]'")


def test_a_jetson_that_has_all(jetson, monkeypatch):
    install(monkeypatch)
    things = found(jetson)
    assert "jetson-agx-orin-64gb" in things["machine"][1] and "power mode MODE_30W" in things["machine"][1]
    assert things["GPU"][1] == f"{ORIN.name}, compute capability 8.7, {ORIN.sm_count} multiprocessors"
    assert [things[name][0] for name in ("pycuda", "plugins", "TensorRT")] == ["ok"] * 3
    assert things["TensorRT"][1] == "10.3.0" and ", in TensorRT, " in things["plugins"][1]
    assert things["power"][0] == "ok" and "ina3221: 12.0 W now" in things["power"][1]


def describe(root, available_mib, lowest_mhz):
    kilobytes = {"MemTotal": 62 << 20, "MemAvailable": available_mib << 10, "SwapTotal": 4 << 20}
    write(root / "proc/meminfo", "\n".join(f"{name}: {value} kB" for name, value in kilobytes.items()))
    gpu = root / "sys/class/devfreq/17000000.gpu"
    write(gpu / "min_freq", str(lowest_mhz * 10**6))
    write(gpu / "max_freq", "612000000")


def test_a_jetson_that_is_slower_than_it_could_be(jetson, tmp_path, monkeypatch):
    install(monkeypatch)
    describe(tmp_path, 40_000, 306)
    things = found(jetson)
    state, text, hint = things["memory"]
    assert (state, text) == ("-", "39.1 GiB available, 4.0 GiB of swap") and "the system takes 23488 MiB" in hint
    state, text, hint = things["power mode"]
    assert (state, text) == ("-", "MODE_30W; faster: MAXN, MODE_50W") and "tune" in hint
    assert things["GPU clock"][:2] == ("-", "306 to 612 MHz") and "jetson_clocks" in things["GPU clock"][2]


def test_a_jetson_at_its_best(jetson, tmp_path, monkeypatch):
    install(monkeypatch)
    describe(tmp_path, 62_500, 612)
    things = found(replace(jetson, power_mode="MAXN"))
    assert things["memory"][0] == "ok" and things["memory"][2] is None and "power mode" not in things
    assert things["GPU clock"] == ("ok", "fixed, 612 MHz", None)


def test_plugins_that_are_missing_are_told_once(jetson, monkeypatch):
    def missing():
        raise EdgeAwqError("there is no plugin library", hint="build it")

    install(monkeypatch)
    monkeypatch.setattr("edge_awq.plugins.find_library", missing)
    things = found(jetson)
    assert things["TensorRT"][0] == "ok" and things["plugins"] == ("no", "there is no plugin library", "build it")


def test_a_jetson_that_lacks_everything_says_how_to_get_it(jetson, monkeypatch, tmp_path):
    for name in ("pycuda", "pycuda.driver", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("EDGE_AWQ_PLUGINS", str(tmp_path / "none.so"))
    monkeypatch.setattr("edge_awq.doctor.read_machine", lambda: jetson)
    done = command("doctor")
    assert done.code == 1
    for words in ("no  pycuda ", "no  plugins ", "no  TensorRT ", "sudo apt install nvidia-jetpack", "none.so",
                  "pip install 'edge-awq[trt]'"):
        assert words in done.out


def test_the_command_on_this_machine():
    done = command("doctor")
    assert "ok  target cpu        onnxruntime" in done.out and not done.err
