"""Power modes through the real jtop service, without privileges, over an emulated board and its nvpmodel."""

import sys
from pathlib import Path

import pytest
from boards import MODES, ModedBoard
from models import assert_refused, command, make_model

sys.path.insert(0, str(Path(__file__).parents[1] / "power"))
from real_jtop import VERSIONS, python_of, service

from edge_awq.bench.results import read_results
from edge_awq.errors import EdgeAwqError
from edge_awq.tune import setters
from edge_awq.tune.nvpmodel import ModeRefused, ModeSwitch
from edge_awq.tune.setters import JtopSetter, NvpmodelSetter, PowerMode, find_setter


@pytest.fixture
def board(tmp_path, monkeypatch):
    board = ModedBoard(tmp_path)
    monkeypatch.setenv("PATH", board.path)  # the service's nvpmodel
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    return board


@pytest.fixture(params=VERSIONS)
def setter(request, board, tmp_path):
    socket = tmp_path / "jtop.sock"
    with service(request.param, tmp_path / "sys/bus/i2c/devices", socket):
        yield JtopSetter(str(socket), python_of(request.param))


def test_modes_are_set_and_set_back(board, setter):
    switch = ModeSwitch(board.root, setter)
    with switch.restored():
        for name in ("10W", "15W"):
            switch.set(switch.find([name])[0])
            assert board.mode == MODES[name]
    assert board.mode == MODES["MAXN"] and board.calls == ["-m 1", "-m 2", "-m 0"]


@pytest.mark.parametrize("name", ["REBOOT", "BROKEN"])
def test_a_mode_that_is_not_set_says_so_and_reboots_nothing(board, setter, name):
    switch = ModeSwitch(board.root, setter)
    with pytest.raises(ModeRefused, match="the mode is still MAXN; it may need a reboot"), switch.restored():
        switch.set(switch.find([name])[0])
    assert board.mode == MODES["MAXN"] and not (board.root / "rebooted").exists()


def test_a_service_that_means_another_mode_by_the_number_is_not_asked(board, setter):
    assert "has other modes (MAXN, 10W, 15W, REBOOT, BROKEN)" in setter(PowerMode(1, "25W"))
    assert "has other modes" in setter(PowerMode(7, "7W")) and board.calls == []


def test_no_service_is_one_clear_reason(board, tmp_path):
    setter = JtopSetter(str(tmp_path / "nowhere"), python_of(VERSIONS[0]))
    reason = setter(PowerMode(1, "10W"))
    assert "not active" in reason and "systemctl start jtop" in reason and "\n" not in reason


def test_without_jetson_stats_it_says_what_is_missing(board):
    assert "jetson-stats is not installed" in JtopSetter()(PowerMode(1, "10W"))


def test_a_service_that_hangs_is_given_up(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    assert "no answer within 0.2 s" in JtopSetter("socket", str(python), answer_s=0.2)(PowerMode(1, "10W"))


def test_the_whole_tuner(board, setter, tmp_path, monkeypatch):
    monkeypatch.setattr(setters, "find_setter", lambda way: setter)
    make_model(tmp_path / "model")
    assert command("build", tmp_path / "model", "-o", tmp_path / "b", "--recipe", "rtn").code == 0
    done = command("tune", tmp_path / "b", "--meter-root", board.root, "--meter", "ina3221", "--meter-interval", 0.005,
                   "--settle", 0, "--threads", 1, "--yes", "--set-by", "jtop", "--modes", "15W,10W,REBOOT",
                   "--repeats", 3, "-o", tmp_path / "r.json")
    assert done.code == 0, done.err
    modes = [one.result.provenance.power_mode for one in read_results(tmp_path / "r.json")]
    assert modes == ["15W", "10W"] and board.mode == MODES["MAXN"]
    assert "left out: REBOOT: jtop: its service did not do it" in done.out and "MAXN again" in done.out


def test_which_way_is_taken(board, tmp_path, monkeypatch):
    """The service where this user may ask it and is not root; nvpmodel else."""
    socket = tmp_path / "jtop.sock"
    monkeypatch.setattr(setters, "JTOP_SOCKET", str(socket))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for user, there, kind in ((1000, False, NvpmodelSetter), (1000, True, JtopSetter), (0, True, NvpmodelSetter)):
        monkeypatch.setattr("os.geteuid", lambda user=user: user)
        if there:
            socket.touch()
        assert isinstance(find_setter(), kind), (user, there)
    assert isinstance(find_setter("jtop"), JtopSetter) and isinstance(find_setter("nvpmodel"), NvpmodelSetter)
    with pytest.raises(EdgeAwqError, match="'sysfs'") as caught:
        find_setter("sysfs")
    assert "auto, nvpmodel, jtop" in caught.value.hint


def test_an_unknown_way_is_one_clear_error(board, tmp_path):
    make_model(tmp_path / "model")
    assert command("build", tmp_path / "model", "-o", tmp_path / "b", "--recipe", "rtn").code == 0
    assert_refused(command("tune", tmp_path / "b", "--meter-root", board.root, "--set-by", "sysfs", "--yes"), "'sysfs'")
