"""The run log: exact times by a fake clock, what may not stand in it, and what a kill leaves."""

import csv
import errno
import getpass
import json
import re
import signal
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from edge_awq.errors import EdgeAwqError
from edge_awq.runner.generate import Token
from edge_awq.runner.logread import read_run
from edge_awq.runner.metrics import summarize
from edge_awq.runner.runlog import RunLog

S = 1_000_000_000  # nanoseconds
# 8 prompt tokens in 2 s, then tokens at 2.5, 3.0, 3.5 and 5.5 s
TOKENS = [Token(0, 7, "secret ", 2.0, 2.5, None), Token(1, 8, "answer", 2.9, 3.0, None),
          Token(2, 9, "", 3.4, 3.5, None), Token(3, 2, "", 5.4, 5.5, "eos")]
REQUEST_KEYS = {"event", "t_ns", "rep", "n_prompt", "n_gen", "n_ctx_start", "finish_reason", "ttft_ms", "prefill_s",
                "prefill_tok_s", "decode_s", "decode_tok_s", "itl_ms", "e2e_s", "energy", "power", "mem", "temp_c",
                "throttled"}


class Clock:
    """Nanoseconds; the run starts at 5 s."""

    def __init__(self) -> None:
        self.now_ns = 5 * S

    def __call__(self) -> int:
        return self.now_ns


def read(log: RunLog) -> list[dict]:
    return [json.loads(line) for line in (log.path / "run.jsonl").read_text().splitlines()]


@pytest.fixture
def written(tmp_path):
    """A whole run: 1 s of loading, one request begun at 2 s, a summary."""
    clock = Clock()
    with RunLog(tmp_path / "runs", {"model": {"name": "tiny"}}, started_ns=5 * S, clock_ns=clock) as log:
        log.phase("load", (0, S))
        clock.now_ns += 2 * S
        assert list(log.record(iter(TOKENS), prompt_tokens=8)) == TOKENS
        log.summary(summarize(TOKENS, 8, load_s=1.0, weight_bytes_per_token=7))
    return log


def test_events_come_in_order_each_with_its_time(written):
    events = read(written)
    assert [event["event"] for event in events] == ["start", "phase", "phase", "phase", "request", "summary"]
    assert [event["t_ns"] for event in events] == [0, 0, 2 * S, 2 * S, 2 * S, 2 * S]


def test_the_start_says_what_is_known_and_null_for_the_rest(written):
    start = read(written)[0]
    assert start["schema"] == "edge-awq.run/1"
    assert start["run_id"] == written.path.name
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", start["run_id"])
    assert start["model"] == {"name": "tiny"}
    assert start["software"]["python"].startswith("3.")
    assert start["cpu"]["usable_cpus"] >= 1
    for key in ("sampler", "engine", "git_commit"):
        assert start[key] is None
    assert set(start["clocks"]) >= {"gpu_cur_mhz", "gpu_max_mhz", "emc_cur_mhz", "cpu_max_mhz", "jetson_clocks"}
    assert start["anchor"]["monotonic_ns"] == 5 * S
    utc = datetime.strptime(start["anchor"]["utc"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert abs((datetime.now(timezone.utc) - utc).total_seconds()) < 60


def test_phases_are_load_prefill_and_decode(written):
    phases = [event for event in read(written) if event["event"] == "phase"]
    assert [(phase["name"], phase["t_start_ns"], phase["t_end_ns"], phase["tokens"]) for phase in phases] == [
        ("load", 0, S, 0), ("prefill", 2 * S, 4 * S, 8), ("decode", int(4.5 * S), int(7.5 * S), 3)]


def test_a_request_has_the_defined_numbers_and_null_energy(written):
    request = next(event for event in read(written) if event["event"] == "request")
    assert set(request) == REQUEST_KEYS
    assert (request["n_prompt"], request["n_gen"], request["n_ctx_start"], request["finish_reason"]) == (8, 4, 0, "eos")
    assert (request["prefill_s"], request["prefill_tok_s"]) == (2.0, 4.0)
    assert (request["decode_s"], request["decode_tok_s"]) == (3.0, 1.0)
    assert (request["ttft_ms"], request["e2e_s"]) == (2500.0, 5.5)
    assert request["itl_ms"] == {"p50": 500.0, "p95": pytest.approx(1850), "p99": pytest.approx(1970), "max": 2000.0}
    assert set(request["energy"].values()) == set(request["power"].values()) == {None}
    assert request["mem"]["peak_rss_bytes"] > 1 << 20


def test_the_summary_has_the_numbers_of_the_json_object_without_the_text(written):
    summary = read(written)[-1]
    expected = summarize(TOKENS, 8, load_s=1.0, weight_bytes_per_token=7).to_dict()
    assert "text" not in summary
    for key in set(expected) - {"text", "peak_rss_bytes"}:
        assert summary[key] == expected[key], key
    assert summary["valid"] is True and summary["energy"] is None


def test_tokens_are_rows_on_the_same_clock(written):
    with (written.path / "tokens.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["t_ns"] for row in rows] == [str(int((2 + token.t_s) * S)) for token in TOKENS]
    assert [row["phase"] for row in rows] == ["prefill", "decode", "decode", "decode"]
    assert [(row["rep"], row["idx"], row["token_id"]) for row in rows] == [("0", str(index), "") for index in range(4)]


def test_neither_text_nor_names_of_user_and_host_are_logged(written):
    text = "".join((written.path / name).read_text() for name in ("run.jsonl", "tokens.csv"))
    assert "secret" not in text and "answer" not in text
    assert str(Path.home()) not in text
    for name in (getpass.getuser(), socket.gethostname()):
        assert not re.search(rf'"{re.escape(name)}"', text)


def test_a_stream_that_is_broken_off_is_logged(tmp_path):
    with RunLog(tmp_path, {}) as log:
        for token in log.record(iter(TOKENS), prompt_tokens=8):
            if token.index == 1:
                break
    request = read(log)[-1]
    assert (request["event"], request["n_gen"], request["finish_reason"]) == ("request", 2, None)


def test_a_failure_before_the_first_token_is_logged_and_raised(tmp_path):
    def failing():
        raise EdgeAwqError("no")
        yield

    with RunLog(tmp_path, {}) as log, pytest.raises(EdgeAwqError):
        list(log.record(failing(), prompt_tokens=8))
    request = read(log)[-1]
    assert (request["n_gen"], request["ttft_ms"], request["decode_tok_s"]) == (0, None, None)
    assert request["itl_ms"] == {"p50": None, "p95": None, "p99": None, "max": None}


def test_requests_are_numbered(tmp_path):
    with RunLog(tmp_path, {}) as log:
        for _ in range(2):
            list(log.record(iter(TOKENS), prompt_tokens=8, context_start=3))
    requests = [event for event in read(log) if event["event"] == "request"]
    assert [(request["rep"], request["n_ctx_start"]) for request in requests] == [(0, 3), (1, 3)]
    assert (log.path / "tokens.csv").read_text().count("\n1,") == 4


KILLED = """
import os, signal, sys
from pathlib import Path
from edge_awq.runner.generate import Token
from edge_awq.runner.runlog import RunLog
log = RunLog(Path(sys.argv[1]), {})
for token in log.record((Token(index, 1, "", 0.1, 0.1, None) for index in range(9)), prompt_tokens=3):
    if token.index == 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_readable_lines(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (path,) = tmp_path.glob("*/run.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(event["event"], event.get("name")) for event in events] == [("start", None), ("phase", "prefill")]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeAwqError, match="run log") as caught:
        RunLog(tmp_path / "file", {})
    assert caught.value.hint


def test_two_runs_at_once_have_directories_of_their_own(tmp_path):
    with RunLog(tmp_path, {}) as one, RunLog(tmp_path, {}) as two:
        assert one.path != two.path


def test_a_full_disk_is_one_error_that_names_the_log(tmp_path):
    class Full:
        def write(self, line):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    log = RunLog(tmp_path, {})
    log._file.close()
    log._file = Full()
    with pytest.raises(EdgeAwqError, match=r"run\.jsonl: the run log cannot be written \(No space left") as caught:
        log.event("phase")
    assert "free space" in caught.value.hint


def test_the_same_for_the_tokens(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("edge_awq.runner.runlog.write_text", full)
    refused = pytest.raises(EdgeAwqError, match=r"tokens\.csv: the run log cannot be written \(No space left")
    with refused, RunLog(tmp_path, {}):
        pass


@pytest.mark.parametrize(("kind", "change"), [("request", {"energy": None}), ("request", {"power": {}}),
                                              ("request", {"rep": ...}), ("summary", {"valid": ...})])
def test_an_event_that_lacks_something_is_damage(written, kind, change):
    (name, value), = change.items()
    events = read(written)
    for event in events:
        if event["event"] == kind:
            event.update(change)
            if value is ...:
                del event[name]
    events.append({"event": "warning", "code": "x", "text": "so that it is not the last line, which a kill may cut"})
    (written.path / "run.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    with pytest.raises(EdgeAwqError, match=r"run\.jsonl: line \d is damaged") as caught:
        read_run(written.path)
    assert "copy the run directory again" in caught.value.hint
