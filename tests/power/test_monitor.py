"""The sampling process and its keeper, with the real INA3221 meter over a tree, and what happens when it dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trees import Board

from edge_awq.errors import EdgeAwqError
from edge_awq.power.base import MeterChoice
from edge_awq.power.choose import METERS
from edge_awq.power.monitor import start_meter

POLL_S, PATIENCE_S = 0.01, 30.0


@pytest.fixture
def board(tmp_path):
    made = Board(tmp_path, "orin-nx")
    made.set_total_w(12)
    return made


def start(tmp_path, name="ina3221", **changes):
    return start_meter(MeterChoice(name, root=str(tmp_path), **changes))


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL_S)


def wait_for_samples(meter, count):
    wait_for(lambda: len(meter.readings()) >= count)


def test_a_phase_is_measured_and_idle_power_subtracted(tmp_path, board):
    with start(tmp_path, interval_s=0.02) as meter:
        assert meter.ready().total.scope == "module"
        assert meter.measure_idle(0.4) == pytest.approx(12)
        start_ns = time.monotonic_ns()
        wait_for_samples(meter, len(meter.readings()) + 12)
        energy = meter.energy([(start_ns, time.monotonic_ns())])
    assert energy.problem is None
    assert energy.energy_j == pytest.approx(12 * energy.duration_s)
    assert energy.above_idle_j == pytest.approx(0, abs=1e-6)
    assert meter.warnings == ()


def test_a_phase_that_begins_once_the_meter_is_ready_is_covered(tmp_path, board):
    with start(tmp_path) as meter:
        meter.ready()
        start_ns = time.monotonic_ns()
        wait_for_samples(meter, 3)
        assert meter.energy([(start_ns, time.monotonic_ns())]).problem == "phase_too_short"


def test_the_sampler_is_a_process_of_its_own(tmp_path, board):
    with start(tmp_path) as meter:
        meter.ready()
        process = meter._process
        assert process.pid != os.getpid() and os.getsid(process.pid) == process.pid
    assert process.returncode == 0


def test_the_sampler_needs_the_standard_library_alone():
    """So that the interpreter that has jetson-stats can run it."""
    code = "import sys, edge_awq.power.sampler\nfor name in sys.argv[1:]: __import__(name)\nprint(*sys.modules)"
    meters = [f"edge_awq.power.{name}" for name in METERS]
    listed = subprocess.run([sys.executable, "-c", code, *meters], check=True, capture_output=True, text=True).stdout
    assert not {"numpy", "click", "rich", "onnxruntime", "jtop", "pynvml"} & set(listed.split())


def test_a_listener_hears_every_sample_from_the_first(tmp_path, board):
    heard = []
    with start(tmp_path, interval_s=0.02) as meter:
        wait_for_samples(meter, 3)
        meter.listen(heard.append)
        wait_for_samples(meter, 6)
    assert heard == meter.readings()


def test_between_phases_only_the_newest_samples_are_kept(tmp_path, board):
    heard = []
    with start(tmp_path, interval_s=0.01) as meter:
        meter.ready()
        meter.forget()
        meter.listen(heard.append)
        wait_for(lambda: len(heard) >= 40)
        assert len(meter.readings()) <= 16
        meter.follow()
        wait_for_samples(meter, 40)


def test_a_killed_sampler_is_lost_and_the_phase_has_no_energy(tmp_path, board):
    with start(tmp_path, interval_s=0.02) as meter:
        meter.ready()
        start_ns = time.monotonic_ns()
        wait_for_samples(meter, 20)
        middle_ns = time.monotonic_ns()
        meter._process.kill()
        wait_for(lambda: meter.warnings)
        end_ns = time.monotonic_ns()
        whole, first = meter.energy([(start_ns, end_ns)]), meter.energy([(start_ns, middle_ns - 10**8)])
    assert (whole.energy_j, whole.mean_w, whole.problem) == (None, None, "sampler_lost")
    assert first.energy_j == pytest.approx(12 * first.duration_s) or first.problem == "phase_too_short"
    ((code, text),) = meter.warnings
    assert code == "sampler_lost" and "was killed" in text


def test_a_sampler_that_stands_still_leaves_a_hole(tmp_path, board):
    with start(tmp_path, interval_s=0.02) as meter:
        wait_for_samples(meter, 12)
        start_ns = meter.readings()[0].t_ns
        meter._process.send_signal(signal.SIGSTOP)
        time.sleep(1.2)  # longer than a hole may be
        end_ns = time.monotonic_ns()
        meter._process.send_signal(signal.SIGCONT)
        energy = meter.energy([(start_ns, end_ns)])
    assert (energy.energy_j, energy.problem) == (None, "sampler_lost")
    assert energy.coverage < 1


HANGING = """#!/bin/sh
exec sleep 60
"""


def interpreter(tmp_path, text):
    path = tmp_path / "python"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_a_meter_that_hangs_is_given_up(tmp_path):
    meter = start(tmp_path, python=interpreter(tmp_path, HANGING), start_s=0.3)
    with meter, pytest.raises(EdgeAwqError, match=r"no answer within 0\.3 s") as caught:
        meter.ready()
    assert "restart" in caught.value.hint


def test_an_interpreter_that_is_not_there_is_one_clear_error(tmp_path):
    with start(tmp_path, python=str(tmp_path / "nowhere")) as meter, pytest.raises(EdgeAwqError, match="did not start"):
        meter.ready()


def test_a_sampler_that_fails_says_its_last_words(tmp_path):
    python = interpreter(tmp_path, "#!/bin/sh\necho 'ImportError: no such thing' >&2\nexit 3\n")
    with start(tmp_path, python=python) as meter, pytest.raises(EdgeAwqError, match="no such thing"):
        meter.ready()


def test_auto_goes_on_to_the_next_meter_and_says_so(tmp_path, board):
    """On a Jetson without jetson-stats, or without its service, as this machine is one."""
    with start(tmp_path, "auto") as meter:
        assert meter.ready().backend == "ina3221"
    ((code, text),) = meter.warnings
    assert code == "meter_skipped" and text.startswith("jtop: ")


def test_auto_with_nothing_to_measure_is_a_warning(tmp_path):
    with start(tmp_path, "auto", device="cpu") as meter:
        assert meter.ready() is None
        assert meter.energy([(0, 10**9)]).problem == "no_power_source"
        assert meter.measure_idle(0.0) is None
    assert [code for code, _ in meter.warnings] == ["meter_skipped", "no_power_source"]


def test_a_meter_asked_for_by_name_must_measure(tmp_path):
    with start(tmp_path, "rapl") as meter, pytest.raises(EdgeAwqError, match="rapl"):
        meter.ready()


def test_no_meter_measures_nothing_and_starts_nothing(tmp_path):
    with start(tmp_path, "none") as meter:
        assert meter.ready() is None and meter._process is None
        assert meter.energy([(0, 10**9)]).energy_j is None
    ((code, _),) = meter.warnings
    assert code == "no_power_source"


@pytest.mark.parametrize("interval_s", [0, -1, 61, float("nan")])
def test_intervals_that_are_not_possible(tmp_path, interval_s):
    with pytest.raises(EdgeAwqError, match="meter interval"):
        start(tmp_path, interval_s=interval_s)


def test_a_slower_interval_than_asked_for_is_a_warning(tmp_path):
    from trees import add_battery

    add_battery(tmp_path, power_now=9_000_000)
    with start(tmp_path, "battery") as meter:
        meter.ready()
    assert "interval_slower" in [code for code, _ in meter.warnings]


ORPHANED = """
import sys, time
from edge_awq.power.base import MeterChoice
from edge_awq.power.choose import METERS
from edge_awq.power.monitor import start_meter
meter = start_meter(MeterChoice("ina3221", root=sys.argv[1]))
meter.ready()
print(meter._process.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_program_takes_its_sampler_with_it(tmp_path, board):
    program = subprocess.Popen([sys.executable, "-c", ORPHANED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    sampler = int(program.stdout.readline())
    program.kill()
    program.communicate()
    wait_for(lambda: not _runs(sampler))


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
