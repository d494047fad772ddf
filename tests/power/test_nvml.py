"""The NVML meter in its sampling process: the real nvidia-ml-py over a C library that stands in for the driver's."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from trees import write

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import MeterChoice
from edge_awq.power.monitor import start_meter

pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed; pip install 'edge-awq[nvml]'")
STUB, CUDA_STUB = (Path(__file__).with_name(name) for name in ("nvml_stub.c", "cuda_stub.c"))


def compile_library(source, target):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler; apt-get install gcc")
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-Wall", "-Werror", "-o", target, source], check=True)


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nvml")
    compile_library(STUB, folder / "libnvidia-ml.so.1")
    return folder


@pytest.fixture
def measure(library_folder, monkeypatch, tmp_path):
    """Open the meter with some of the driver's answers taken away."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library_folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def start(without="", **changes):
        monkeypatch.setenv("NVML_STUB", without)
        return start_meter(MeterChoice("nvml", root=str(tmp_path), **changes))

    return start


def test_power_counter_and_all_beside_it(measure):
    with measure() as meter:
        source = meter.ready()
        assert (source.rails, source.total.scope) == (("GPU",), "gpu-board")
        assert source.details == {"device": "Stand-in GPU", "driver": "580.1"} and source.version
        start_ns = time.monotonic_ns()
        time.sleep(1.2)
        span = (start_ns, time.monotonic_ns())
        energy = meter.energy([span])
        reading = meter.latest
    # The counter counts whole milliseconds; a busy machine may read the clock up to a sample later than the counter.
    seconds = (span[1] - span[0]) / 1e9
    assert energy.method == "counter" and energy.energy_j == pytest.approx(40 * seconds, abs=40 * 0.1)
    assert energy.rails_j["GPU"] == pytest.approx(30 * seconds)
    assert (reading.gpu_load_pct, reading.gpu_mhz, reading.emc_mhz) == (87, 1000, 1002)
    assert (reading.temp_gpu_c, reading.ram_used_bytes, reading.throttled) == (55, 123456, False)


def test_the_instant_field_comes_before_the_drivers_mean(measure):
    with measure() as meter:
        assert meter.ready().notes == () and meter.latest.rails_mw == (30000,)
    with measure("instant,counter,cool") as meter:
        source = meter.ready()
        assert "running mean" in source.notes[0] and source.counter_min_s is None
        assert meter.latest.rails_mw == (20000,) and meter.latest.counter_j is None
        assert meter.latest.throttled is True
        assert meter.latest.t_ns - meter.latest.began_ns >= 1e9  # nothing of a phase before it


@pytest.mark.parametrize("without, words", [("instant,plain", "does not tell its power"), ("init", "Permission")])
def test_a_gpu_that_cannot_be_measured_is_one_clear_error(measure, without, words):
    with measure(without) as meter, pytest.raises(EdgeAwqError, match=words) as caught:
        meter.ready()
    assert caught.value.hint


def test_without_a_driver_it_says_so(measure, monkeypatch):
    monkeypatch.delenv("LD_LIBRARY_PATH")
    with measure() as meter:
        try:
            meter.ready()
        except EdgeAwqError as error:
            assert error.message.startswith("nvml: ") and error.hint
        else:
            pytest.skip("this machine has a real NVML")


def test_the_gpu_that_cuda_takes_is_the_one_measured(measure, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with measure() as meter:
        assert meter.ready().details["device"] == "Second GPU"


def test_it_is_cudas_first_gpu_not_the_first_one_on_the_bus(measure, library_folder, tmp_path, monkeypatch):
    compile_library(CUDA_STUB, tmp_path / "libcuda.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{library_folder}:{tmp_path}")
    with measure() as meter:
        assert meter.ready().details["device"] == "Second GPU"


def test_on_a_jetson_nvml_is_never_asked(measure, tmp_path):
    write(tmp_path / "etc/nv_tegra_release", "# R36")
    with measure() as meter, pytest.raises(EdgeAwqError, match="on Jetson it measures no power"):
        meter.ready()
