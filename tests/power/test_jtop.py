"""The jtop meter against the real service and client of jetson-stats, over a fake sensor tree and without privileges.

Each version lives in an environment of its own, made by scripts/jtop_environments; without it these tests are skipped.
"""

import itertools
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from real_jtop import VERSIONS, python_of, service
from trees import BOARDS, SCOPES, TOTALS, Board, write

from edge_awq.errors import EdgeAwqError
from edge_awq.power import jtop
from edge_awq.power.base import MeterChoice
from edge_awq.power.monitor import start_meter

IDLE_W, PREFILL_W, DECODE_W = 5, 20, 12
# (watts, seconds): a prefill is repeated until it has samples enough, off the sampler's beat.
TRACE = [*[(IDLE_W, 0.53), (PREFILL_W, 0.4)] * 4, (DECODE_W, 3.0), (IDLE_W, 0.3)]


@pytest.fixture(params=VERSIONS)
def version(request):
    python_of(request.param)
    return request.param


@pytest.fixture
def serve(tmp_path):
    """Start the service over a board's tree; all its processes end with the test."""
    with ExitStack() as running:
        yield lambda version, i2c: running.enter_context(service(version, i2c, tmp_path / "jtop.sock"))


@pytest.fixture
def measure(tmp_path):
    """Start the meter with a version's client."""
    def start(version, **changes):
        return start_meter(MeterChoice("jtop", root=str(tmp_path), jtop_socket=str(tmp_path / "jtop.sock"),
                                       python=python_of(version), **changes))

    return start


def play(board):
    """Play TRACE; returns the spans in which every (watts, seconds) was there for certain."""
    spans = []
    for watts, seconds in TRACE:
        board.set_total_w(watts)
        started_ns = time.monotonic_ns()
        time.sleep(seconds)
        spans.append((started_ns, time.monotonic_ns()))
    return spans


@pytest.mark.parametrize("name", BOARDS)
def test_known_joules_come_back(tmp_path, serve, measure, version, name):
    """A phase counts no sample whose reading began before it or ended after it, so a busy machine costs no accuracy.

    What is left is the rails' rounding to whole milliampere, and sensors that average, which this tree does not.
    """
    board = Board(tmp_path, name)
    board.set_total_w(IDLE_W)
    serve(version, board.i2c)
    with measure(version) as meter:
        source = meter.ready()
        assert (source.version, source.total.rails, source.total.scope) == (version, TOTALS[name], SCOPES[name])
        spans = play(board)
        prefill, decode = (meter.energy([span for span, (played_w, _) in zip(spans, TRACE, strict=True)
                                         if played_w == watts]) for watts in (PREFILL_W, DECODE_W))
    assert prefill.problem is None and prefill.samples >= 10
    assert prefill.energy_j == pytest.approx(PREFILL_W * prefill.duration_s, rel=0.08)
    assert decode.energy_j == pytest.approx(DECODE_W * decode.duration_s, rel=0.01)
    assert meter.warnings == ()


def test_rails_beside_the_total_are_kept(tmp_path, serve, measure, version):
    board = Board(tmp_path, "agx-orin")
    board.set_total_w(15)
    serve(version, board.i2c)
    with measure(version) as meter:
        source, reading = meter.ready(), meter.latest
        by_rail = dict(zip(source.rails, reading.rails_mw, strict=True))
        assert by_rail == {"VDD_GPU_SOC": 5000, "VDD_CPU_CV": 5000, "VIN_SYS_5V0": 5000, "VDDQ_VDD2_1V8AO": 1000}
        assert source.total_w(reading) == 15
        assert reading.ram_used_bytes > 1 << 20 and reading.gpu_mhz is None


CLIENT = """
import sys, time
from jtop import jtop, service
service.JTOP_PIPE = sys.argv[1]
client = jtop(1.0)
client.start()
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def slow_client(version, socket):
    client = subprocess.Popen([python_of(version), "-c", CLIENT, socket], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout.readline() == "ready\n"
        yield
    finally:
        client.kill()
        client.communicate()


def test_another_clients_longer_interval_is_noticed_and_lived_with(tmp_path, serve, measure, version):
    serve(version, Board(tmp_path, "orin-nx").i2c)
    with slow_client(version, tmp_path / "jtop.sock"), measure(version) as meter:
        assert meter.ready().interval_s == 1.0
        deadline = time.monotonic() + 20
        while len(meter.readings()) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        readings = meter.readings()
        assert len(readings) >= 4, "samples stopped"
        gaps_s = [(after.source_uptime_s - before.source_uptime_s)
                  for before, after in itertools.pairwise(readings)]
        assert min(gaps_s) > 0.5, "old samples were taken for new ones"
    assert [code for code, _ in meter.warnings] == ["interval_slower"]


def refused(meter, *words):
    with meter, pytest.raises(EdgeAwqError) as caught:
        meter.ready()
    text = f"{caught.value.message} {caught.value.hint}"
    for word in ("jtop: ", *words):
        assert word in text
    assert "\n" not in text


def test_no_service(measure, version):
    refused(measure(version), "not active", "systemctl start jtop")


def test_a_stale_socket(tmp_path, serve, measure, version):
    server = serve(version, Board(tmp_path, "orin-nx").i2c)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    assert (tmp_path / "jtop.sock").exists()
    refused(measure(version), "not active", "socket alone goes stale")


def test_a_service_of_another_version(tmp_path, serve, measure):
    serve("7.2.2", Board(tmp_path, "orin-nx").i2c)
    refused(measure("4.3.2"), "Mismatch version", "[7.2.2]", "ina3221")


def test_a_service_without_power_rails(tmp_path, serve, measure, version):
    (tmp_path / "none").mkdir()
    serve(version, tmp_path / "none")
    refused(measure(version), "no power rails", "--meter none")


def test_a_service_that_is_slow_at_first_is_waited_for(tmp_path, serve, measure, version, monkeypatch):
    """jetson-stats' client gives up after three intervals, where the service has not measured anything yet."""
    monkeypatch.setenv("STAND_IN_FIRST_S", "1.5")
    serve(version, Board(tmp_path, "orin-nx").i2c)
    with measure(version) as meter:
        assert meter.ready().backend == "jtop"


def test_a_service_that_hangs(tmp_path, serve, measure, version):
    server = serve(version, Board(tmp_path, "orin-nx").i2c)
    os.killpg(server.pid, signal.SIGSTOP)
    refused(measure(version, start_s=2.0), "no answer within 2 s", "restart jtop")


def test_a_socket_that_may_not_be_opened(tmp_path, serve, version):
    """As another user, where the tests run as root, who may open everything."""
    serve(version, Board(tmp_path, "orin-nx").i2c)
    socket, python = tmp_path / "jtop.sock", python_of(version)
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed; apt-get install util-linux")
        wrapper = tmp_path / "python"
        wrapper.write_text(f'#!/bin/sh\nexec setpriv --reuid 65534 --regid 65534 --clear-groups {python} "$@"\n')
        wrapper.chmod(0o755)
        own = itertools.takewhile(lambda folder: folder.name.startswith(("pytest-", "popen-")), tmp_path.parents)
        for folder in (tmp_path, *own):
            folder.chmod(0o755)
        python = str(wrapper)
    else:
        socket.chmod(0)
    choice = MeterChoice("jtop", root=str(tmp_path), jtop_socket=str(socket), python=python)
    refused(start_meter(choice), "can't access", "usermod -aG jtop")


@pytest.mark.parametrize("who", ["all of it", "its sensors alone"])
def test_a_service_that_dies_leaves_no_number(tmp_path, serve, measure, version, who):
    server = serve(version, Board(tmp_path, "orin-nx").i2c)
    with measure(version) as meter:
        meter.ready()
        start_ns = time.monotonic_ns()
        time.sleep(0.5)
        if who == "all of it":
            os.killpg(server.pid, signal.SIGKILL)
        else:  # the socket still answers, with the last values, for ever
            for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[1:]:
                os.kill(int(child), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while not meter.warnings and time.monotonic() < deadline:
            time.sleep(0.02)
        energy = meter.energy([(start_ns, time.monotonic_ns())])
    assert (energy.energy_j, energy.problem) == (None, "sampler_lost")
    assert [code for code, _ in meter.warnings] == ["sampler_lost"]


def test_what_the_monitors_average_counts_as_begun_before(tmp_path, serve, measure, version):
    board = Board(tmp_path, "orin-nx")
    write(tmp_path / "sys/class/hwmon/hwmon0/update_interval", "430")
    serve(version, board.i2c)
    with measure(version) as meter:
        assert "the first 1.3 s of a phase" in meter.ready().notes[0]
        assert meter.latest.t_ns - meter.latest.began_ns >= 1.29e9


@pytest.mark.parametrize(("cycle_s", "pace_s"), [(0.1, 0.1), (0.12, 0.1), (0.9, 0.9)])
def test_a_service_whose_own_reading_takes_longer_has_that_pace(cycle_s, pace_s):
    """It then says 0.1 s and takes what its drivers take."""
    meter = jtop.Jtop(MeterChoice("jtop"))
    meter._client = SimpleNamespace(interval=0.1)
    for index in range(4):
        meter._samples.put((0, 50 + index * cycle_s, {}))
    assert meter._pace_s() == pytest.approx(pace_s) and len(meter._early) == 4
