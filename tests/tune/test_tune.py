"""The tuner over an emulated board: what it measures and chooses, and that the power mode is set back, always."""

import os
import signal
import subprocess
import sys
import time

import pytest
from boards import MODES, TEMP_C, WATTS, ModedBoard, write
from models import assert_refused, command, make_model

from edge_awq.bench.results import read_results
from edge_awq.signals import ENDINGS
from edge_awq.tune import nvpmodel, setters

NEVER_ENDS = 10**6  # repeats


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    make_model(folder / "model")
    assert command("build", folder / "model", "-o", folder / "b", "--recipe", "rtn").code == 0
    return folder / "b"


@pytest.fixture
def board(tmp_path, monkeypatch):
    """On a machine that counts as idle."""
    board = ModedBoard(tmp_path)
    monkeypatch.setenv("PATH", board.path)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    return board


def options(bundle, board, *more, meter="ina3221"):
    return ("tune", bundle, "--meter-root", board.root, "--meter", meter, "--meter-interval", 0.005, "--settle", 0,
            "--threads", 1, *more)


def test_every_mode_is_measured_and_the_first_one_set_again(bundle, board, tmp_path):
    done = command(*options(bundle, board, "-o", tmp_path / "r.json"), stdin="y\n")
    assert done.code == 0, done.err
    assert "Set MAXN, 10W, 15W, REBOOT, BROKEN one after the other, and MAXN at the end?" in done.err
    results = {one.result.provenance.power_mode: one.result for one in read_results(tmp_path / "r.json")}
    assert list(results) == ["MAXN", "10W", "15W"]
    for name, one in results.items():
        assert one.valid, one.invalid_reasons
        assert one.mean_w == pytest.approx(WATTS[name]) and one.idle_w == pytest.approx(WATTS[name])
        assert one.temp_max_c == TEMP_C[name] and one.tok_s_median > 0
        assert one.j_per_token > 0  # of the mean step, while the rate is of the median one; see tests/bench/test_joules
    assert board.mode == MODES["MAXN"] and not (board.root / "rebooted").exists()
    assert board.calls == ["-m 1", "-m 2", "-m 3", "-m 4", "-m 0"]  # MAXN was set already
    assert "left out: REBOOT: it needs a reboot" in done.out
    assert "left out: BROKEN: NVPM ERROR: Error writing 0 to max_freq: 13" in done.out
    assert "best for 4 + 200: 10W, " in done.out and "MAXN again" in done.out


def test_a_bound_excludes_the_best_and_the_report_reads_the_results(bundle, board, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'edge-awq[plot]'")
    write(board.root / "var/lib/nvpmodel/status", "pmode:0001")
    done = command(*options(bundle, board, "--yes", "--modes", "15W, MAXN", "--max-temperature", 60,
                            "-o", tmp_path / "r.json"))
    assert done.code == 0, done.err
    assert "best for 4 + 200: 15W, " in done.out and board.mode == MODES["10W"]
    drawn = command("report", tmp_path / "r.json", "-o", tmp_path / "report")
    assert drawn.code == 0, drawn.err
    rows = (tmp_path / "report/results.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["15W", "MAXN"]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_the_mode_is_set_back_when_it_is_ended_in_the_middle(bundle, board, ending):
    arguments = options(bundle, board, "--yes", "--modes", "15W,10W", "--repeats", NEVER_ENDS, meter="none")
    tuner = subprocess.Popen([sys.executable, "-m", "edge_awq", *map(str, arguments)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
    line = next(line for line in tuner.stderr if f"0/{NEVER_ENDS}" in line)
    assert line.startswith("edge-awq w4a16") and board.mode == MODES["15W"]
    if ending == signal.SIGINT:
        os.killpg(tuner.pid, ending)  # as a terminal does: the engine's process gets it too
    else:
        tuner.send_signal(ending)
    out, err = tuner.communicate(timeout=60)
    assert (tuner.returncode, out) == (1, "") and "Error: interrupted" in err and "Traceback" not in err
    assert board.mode == MODES["MAXN"] and board.calls == ["-m 2", "-m 0"]


def test_the_mode_is_set_back_after_a_failure_and_what_was_measured_is_kept(bundle, board, tmp_path, monkeypatch):
    from edge_awq.tune import tune

    measure = tune.measure_prepared

    def fails_later(*arguments):
        if board.mode == MODES["15W"]:
            raise RuntimeError("a bug")
        return measure(*arguments)

    monkeypatch.setattr(tune, "measure_prepared", fails_later)
    with pytest.raises(RuntimeError, match="a bug"):
        command(*options(bundle, board, "--yes", "--modes", "10W,15W", "--repeats", 1, "-o", tmp_path / "r.json",
                         meter="none"))
    assert board.mode == MODES["MAXN"] and len(read_results(tmp_path / "r.json")) == 1


def test_a_mode_that_cannot_be_set_back_says_what_to_do(board):
    switch = nvpmodel.ModeSwitch(board.root)
    with pytest.raises(nvpmodel.EdgeAwqError) as caught, switch.restored():
        switch.set(switch.find(["15W"])[0])
        (board.root / "stuck").touch()
    assert caught.value.message == ("the power mode could not be set back to MAXN, it is 15W: NVPM ERROR: failed to "
                                    "set power mode!")
    assert "sudo nvpmodel -m 0" in caught.value.hint


def test_a_mode_that_was_interrupted_half_way_is_set_back_too(board):
    """Then nvpmodel may have changed clocks and not yet its status file."""
    switch = nvpmodel.ModeSwitch(board.root)
    with pytest.raises(nvpmodel.ModeRefused), switch.restored():
        switch.set(switch.find(["BROKEN"])[0])
    assert board.calls == ["-m 4", "-m 0"]


def sudo(board, text):
    write(board.root / "bin/sudo", f"#!/bin/sh\n{text}")
    (board.root / "bin/sudo").chmod(0o755)
    return setters.NvpmodelSetter((str(board.root / "bin/sudo"), str(board.root / "bin/nvpmodel")))


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt], ids=["no answer", "interrupted"])
def test_sudo_that_may_not_be_killed_hides_nothing(board, monkeypatch, ending):
    """It belongs to root, so a user's signal to it is refused."""
    def refuse(process):
        raise PermissionError(1, "Operation not permitted")

    def communicate(process, *arguments):
        raise ending

    monkeypatch.setattr(setters, "_ANSWER_S", 0.2)
    monkeypatch.setattr(subprocess.Popen, "kill", refuse)
    setter = sudo(board, "exec sleep 2")
    if ending is None:
        assert setter(nvpmodel.PowerMode(1, "10W")) == "nvpmodel gave no answer within 0.2 s"
    else:
        monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
        with pytest.raises(KeyboardInterrupt):
            setter(nvpmodel.PowerMode(1, "10W"))


def test_sudo_is_kept_from_asking_again_before_the_mode_is_set_back(board, monkeypatch):
    monkeypatch.setattr(setters, "_RENEW_S", 0.01)
    said = board.root / "sudo"
    switch = nvpmodel.ModeSwitch(board.root, sudo(board, f'echo "$1 $2" >> {said}; [ "$1" = -n ] || exec "$@"'))
    with switch.restored():
        switch.set(switch.find(["15W"])[0])
        deadline = time.monotonic() + 20
        while "-n -v" not in said.read_text().splitlines() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "-n -v" in said.read_text().splitlines() and board.calls == ["-m 2", "-m 0"]


def test_signals_are_as_before_afterwards(board):
    before = [signal.getsignal(number) for number in ENDINGS]
    with nvpmodel.ModeSwitch(board.root).restored():
        pass
    assert [signal.getsignal(number) for number in ENDINGS] == before and board.calls == []


def no_modes(board):
    (board.root / "etc/nvpmodel.conf").unlink()


def no_status(board):
    (board.root / "var/lib/nvpmodel/status").unlink()


def no_jetson(board):
    (board.root / "etc/nv_tegra_release").unlink()
    (board.root / "proc/device-tree/compatible").unlink()


def no_program(board):
    (board.root / "bin/nvpmodel").unlink()


@pytest.mark.parametrize(("change", "more", "words"), [
    (no_jetson, (), ("no Jetson", "edge-awq bench")), (no_modes, (), ("lists no power modes",)),
    (no_status, (), ("could not be set back", "status")), (no_program, (), ("nvpmodel is not installed",)),
    (None, ("--modes", "15W,60W"), ("'60W' is not one of this board's", "known: MAXN, 10W, 15W")),
    (None, ("--modes", "BROKEN,REBOOT"), ("BROKEN: NVPM ERROR", "REBOOT: it needs a reboot")),
    (None, ("--protocol", "fast"), ("protocol 'fast' is not known",)),
    (None, ("--meter", "rapl"), ("no energy counter",)),
], ids=["no-jetson", "no-modes", "no-status", "no-program", "unknown-mode", "refused", "protocol", "meter"])
def test_what_cannot_be_tuned_is_one_clear_error(bundle, board, change, more, words):
    if change is not None:
        change(board)
    assert_refused(command(*options(bundle, board, "--yes", *more)), *words)
    assert board.calls == [] or board.mode == MODES["MAXN"]


@pytest.mark.parametrize("answer", ["n\n", ""], ids=["no", "nobody there"])
def test_without_consent_nothing_is_changed(bundle, board, answer):
    refused = command(*options(bundle, board), stdin=answer)
    assert refused.code == 1 and "left at MAXN" in refused.err and "--yes" in refused.err
    assert board.calls == []
