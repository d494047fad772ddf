"""Joules per token of the benchmark: real processes for engine and sampler, real meters over trees, known power.

The engine (playing_engine.py) draws 5 W idle, 20 W in a prefill of 0.4 s and 12 W in a decode of 0.8 s. A busy machine
makes them longer; the joules that are expected are those of the spans that they really took.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "power"))
from playing_engine import DECODE_W, IDLE_W, PREFILL_W
from real_jtop import VERSIONS, python_of, service
from trees import RAIL_MV, Board, add_rapl

from edge_awq.bench.measure import Bench, Entry, Settings, Subject
from edge_awq.bench.protocols import Case, Protocol
from edge_awq.bench.results import read_results, write_results
from edge_awq.bench.show import show_results
from edge_awq.bench.worker import Candidate, Worker
from edge_awq.power.base import MeterChoice
from edge_awq.power.monitor import start_meter
from edge_awq.progress import Quiet

PROTOCOL = Protocol("short", (Case(4, 17),), median_step=False)
LONGER = Protocol("longer", (Case(4, 41),), median_step=False)
REPEATS = 4  # that many prefills of 0.4 s have samples enough also where a busy machine delays some
WRAP_J = 40  # where the counter of a processor wraps around: once in every run


@pytest.fixture(autouse=True)
def playing(monkeypatch):
    monkeypatch.setattr("edge_awq.bench.worker.ENGINES", Path(__file__).with_name("playing_engine.py"))


def board_of(root, name="orin-nx"):
    """A board whose total is one rail, which the engine sets."""
    board = Board(root, name)
    rail = board.i2c / "1-0040/hwmon/hwmon0/curr1_input"
    (root / "power.json").write_text(json.dumps({"file": str(rail), "per_w": 1e6 / RAIL_MV}))
    return board


@contextmanager
def processor(root):
    """A RAPL counter that counts what the engine draws, and says it as of the moment of each reading."""
    folder = add_rapl(root, {"package-0": 0}, range_uj=WRAP_J * 1_000_000)
    (root / "power.json").write_text(json.dumps({"file": str(root / "mw"), "per_w": 1000}))
    (root / "mw").write_text(f"{IDLE_W * 1000}\n")
    ended, counted = threading.Event(), {"uj": 0.0, "s": time.monotonic()}
    lock, pipe = threading.Lock(), folder / "intel-rapl:0/energy_uj"

    def advance():
        with lock:
            now_s, milliwatts = time.monotonic(), float((root / "mw").read_text())
            counted["uj"] += (now_s - counted["s"]) * milliwatts * 1e3
            counted["s"] = now_s
            return round(counted["uj"]) % (WRAP_J * 1_000_000)

    def tick():
        while not ended.wait(0.001):
            advance()

    def answer():
        while not ended.is_set():
            try:
                with pipe.open("w") as file:  # waits for a reader
                    file.write(f"{advance()}\n")
            except BrokenPipeError:
                continue
            time.sleep(0.002)  # the reader closes it meanwhile

    pipe.unlink()
    os.mkfifo(pipe)
    threads = [threading.Thread(target=work) for work in (tick, answer)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
        for thread in threads:
            thread.join()


class Noting(Worker):
    """An engine whose times are kept."""

    prefills, decodes = [], []

    def prefill(self, ids):
        self.prefills.append(super().prefill(ids))
        return self.prefills[-1]

    def decode(self, count):
        self.decodes.append(super().decode(count))
        return self.decodes[-1]


def seconds_per_token(samples):
    """Of the repeats; what came before them is the warm-up."""
    return sum(one.wall_s for one in samples[-REPEATS:]) / sum(one.tokens for one in samples[-REPEATS:])


def measure(root, choice, protocol=PROTOCOL, before=lambda meter: None):
    subject = Subject("board", "cpu", "playing", 300)
    settings = Settings(protocol, REPEATS, idle_s=1.2, root=root)
    with start_meter(choice) as meter:
        meter.ready()
        before(meter)
        bench = Bench(subject, settings, meter, Quiet(), Noting)
        return bench.measure([Entry(Candidate("edge-awq", root), "w4a16", 64)])


def check(outcome, backend, scope):
    (result,) = outcome.results
    where = result.provenance
    assert result.valid, result.invalid_reasons
    assert (where.meter, where.power_scope) == (backend, scope) and where.power_rails
    decode_s, prefill_s = seconds_per_token(Noting.decodes), seconds_per_token(Noting.prefills)
    assert result.j_per_token == pytest.approx(DECODE_W * decode_s, rel=0.01)
    assert result.mean_w == pytest.approx(DECODE_W, rel=0.01) and result.idle_w == pytest.approx(IDLE_W, rel=0.01)
    assert result.j_per_token_above_idle == pytest.approx((DECODE_W - IDLE_W) * decode_s, rel=0.02)
    assert result.j_per_prompt_token == pytest.approx(PREFILL_W * prefill_s, rel=0.08)
    assert result.energy_coverage == pytest.approx(1) and result.energy_samples >= 10
    assert result.energy_max_gap_s > 0.5 * where.meter_interval_s
    return result


def test_rails_of_a_board(tmp_path):
    board_of(tmp_path)
    outcome = measure(tmp_path, MeterChoice("ina3221", root=str(tmp_path)))
    assert check(outcome, "ina3221", "module").energy_method == "trapezoid"
    assert outcome.meter_warnings == []
    text = "\n".join(show_results(outcome))
    assert "J/token by ina3221, every 0.1 s, total = module: VDD_IN, idle 5 W included" in text


def test_the_counter_of_a_processor_also_where_it_wraps_around(tmp_path):
    with processor(tmp_path):
        outcome = measure(tmp_path, MeterChoice("rapl", root=str(tmp_path), device="cpu"), LONGER)
    assert check(outcome, "rapl", "cpu-package").energy_method == "counter"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_jtop_service(tmp_path, version):
    board, socket = board_of(tmp_path), tmp_path / "jtop.sock"
    with service(version, board.i2c, socket):
        outcome = measure(tmp_path, MeterChoice("jtop", root=str(tmp_path), jtop_socket=str(socket),
                                                python=python_of(version)))
    check(outcome, "jtop", "module")


def test_a_gpu_by_nvml(tmp_path, monkeypatch):
    """The stand-in draws 40 W by its counter, always."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed; pip install 'edge-awq[nvml]'")
    compiler = shutil.which("cc") or shutil.which("g++") or pytest.skip("no C compiler; apt-get install gcc")
    stub = Path(__file__).parents[1] / "power/nvml_stub.c"
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", stub], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("NVML_STUB", "")
    (result,) = measure(tmp_path, MeterChoice("nvml", root=str(tmp_path)), LONGER).results
    assert result.j_per_token == pytest.approx(40 * seconds_per_token(Noting.decodes), rel=0.01)
    assert (result.energy_method, result.provenance.power_scope) == ("counter", "gpu-board")


def kill_later(root, pids):
    (root / "victim.json").write_text(json.dumps(pids))


def check_lost(root, outcome):
    """Null with the reason, on file too; the speed, which needs no meter, stays."""
    write_results(root / "r.json", outcome.results, outcome.left_out, outcome.meter_warnings)
    (stored,), table = read_results(root / "r.json"), json.loads((root / "r.json").read_text())
    result = stored.result
    assert (result.j_per_token, result.j_per_token_above_idle, result.mean_w) == (None, None, None)
    assert result.j_per_token_problem == "sampler_lost" and result.energy_coverage < 1
    assert result.tok_s_median == pytest.approx(20, rel=0.5)  # a step of 0.05 s, late on a busy machine
    assert not result.valid and "no energy (sampler_lost)" in result.invalid_reasons[0]
    (warning,) = table["meter_warnings"]
    assert warning.startswith("sampler_lost: ")
    text = "\n".join(show_results(outcome))
    assert "sampler_lost" in text and f"meter: {warning}" in text
    return warning


def test_a_sampler_that_dies_in_the_middle_gives_no_number(tmp_path):
    board_of(tmp_path)
    outcome = measure(tmp_path, MeterChoice("ina3221", root=str(tmp_path)),
                      before=lambda meter: kill_later(tmp_path, [meter._process.pid]))
    assert "was killed" in check_lost(tmp_path, outcome)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_jtop_service_that_dies_in_the_middle_gives_no_number(tmp_path, version):
    board, socket = board_of(tmp_path), tmp_path / "jtop.sock"
    with service(version, board.i2c, socket) as server:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        kill_later(tmp_path, [server.pid, *map(int, children)])
        outcome = measure(tmp_path, MeterChoice("jtop", root=str(tmp_path), jtop_socket=str(socket),
                                                python=python_of(version)))
    assert "jtop: " in check_lost(tmp_path, outcome)


def test_a_counter_that_is_taken_away_gives_no_number(tmp_path):
    """A rail's file that is gone is no 0 W, and a later reading is no bridge over a hole of seconds."""
    board = board_of(tmp_path)
    (tmp_path / "power.json").unlink()
    board.set_total_w(DECODE_W)
    gone = threading.Timer(2.5, (board.i2c / "1-0040/hwmon/hwmon0/in1_input").unlink)
    outcome = measure(tmp_path, MeterChoice("ina3221", root=str(tmp_path)), before=lambda meter: gone.start())
    (result,) = outcome.results
    assert (result.j_per_token, result.j_per_token_problem, result.valid) == (None, "sampler_lost", False)
