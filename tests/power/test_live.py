"""The status line on a terminal: pyte, an emulator that is not ours, shows what a person would see."""

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from trees import Board

from edge_awq.power.base import MeterChoice
from edge_awq.power.monitor import start_meter
from edge_awq.runner.generate import Token
from edge_awq.runner.live import Live, column_after

pyte = pytest.importorskip("pyte", reason="pyte is not installed; pip install 'edge-awq[test]'")
ROWS, COLUMNS = 12, 60
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from edge_awq.cli.running import show
from measured import start, tokens
print("before")
with start(sys.argv[1]) as meter:
    show(tokens(int(sys.argv[3]), 0.3, float(sys.argv[4])), meter)
print("\\nafter")
"""


@pytest.fixture
def machine(tmp_path):
    Board(tmp_path, "orin-nx").set_total_w(12)
    return tmp_path


def run_on_terminal(machine, count, step_s=0.05, **environment):
    """Everything that the program wrote to a terminal of ROWS x COLUMNS."""
    master, slave = pty.openpty()
    size = {"LINES": str(ROWS), "COLUMNS": str(COLUMNS), "TERM": "xterm"}
    command = [sys.executable, "-c", PROGRAM, str(machine), str(Path(__file__).parent), str(count), str(step_s)]
    environment = {**os.environ, **size, **environment}
    program = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    pieces = []

    def drain():
        while True:
            try:
                pieces.append(os.read(master, 4096))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=drain)
    reader.start()
    assert program.wait(60) == 0
    reader.join()
    os.close(master)
    return b"".join(pieces).decode()


def screens(output):
    """The emulated screen after every piece that ends with the cursor being put back."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    for piece in output.split("\x1b8"):
        stream.feed(piece + "\x1b8" if piece is not output.rsplit("\x1b8", maxsplit=1)[-1] else piece)
        yield [line.rstrip() for line in screen.display]


def test_text_and_status_never_touch(machine):
    """30 words of 7 or 8 letters fill four rows; the text that stays is the text alone."""
    seen = list(screens(run_on_terminal(machine, 30)))
    during = [screen[-1] for screen in seen[:-1] if "tokens  |" in screen[-1]]
    assert during and all(" W module" in line for line in during)
    assert any("reading the prompt  |  12.0 W module" in screen[-1] for screen in seen)
    final = "".join(line.ljust(COLUMNS) for line in seen[-1])
    words = "".join(f"word{index} " for index in range(30))
    assert words in final and "tok/s" not in final
    first, *_, last = (line for line in seen[-1] if line)
    assert (first, last) == ("before", "after")


def test_a_long_text_scrolls_above_the_status(machine):
    seen = list(screens(run_on_terminal(machine, 100)))
    for screen in seen:
        assert not any("tokens  |" in line for line in screen[:-1])
    assert "word99" in "".join(seen[-1]) and "after" in seen[-1]


def test_the_whole_screen_scrolls_again_afterwards(machine):
    output = run_on_terminal(machine, 3)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    stream.feed(output)
    assert screen.margins is None or (screen.margins.top, screen.margins.bottom) == (0, ROWS - 1)


@pytest.mark.parametrize("terminal", ["dumb", "unknown"])
def test_a_terminal_that_knows_no_sequences_gets_none(machine, terminal):
    assert "\x1b" not in run_on_terminal(machine, 3, TERM=terminal)


def test_pipes_get_text_alone(machine):
    command = [sys.executable, "-c", PROGRAM, str(machine), str(Path(__file__).parent), "3", "0"]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert piped.stdout == "before\nword0 word1 word2 \nafter\n" and piped.stderr == ""


def test_without_a_meter_the_line_has_tokens_alone():
    with start_meter(MeterChoice("none")) as meter:
        live = Live(_Shown(), meter)
        list(live.watch(iter([Token(index, 1, "", 0.0, 0.5 * index, None) for index in range(3)])))
    assert live.text() == "3 tokens  |  2.0 tok/s"


@pytest.mark.parametrize("column, text, end", [
    (0, "abc", 3), (8, "ab", 10), (10, "a", 1), (8, "漢", 10), (3, "x\ny", 1), (3, "\t", 8), (9, "\t", 9),
    (2, "e\u0301", 3),
])
def test_where_the_cursor_goes_is_what_a_terminal_does(column, text, end):
    screen = pyte.Screen(10, 4)
    pyte.Stream(screen).feed("-" * column + text.replace("\n", "\r\n"))
    assert column_after(column, text, 10) == end == screen.cursor.x


def test_a_wide_character_that_does_not_fit_begins_a_row():
    """As xterm and tmux have it; pyte lets it stand out."""
    assert column_after(9, "漢", 10) == 2


def test_nothing_is_drawn_behind_a_full_row(machine):
    """Ten words fill a row; slowly, so that the line is due after every one of them."""
    output = run_on_terminal(machine, 12, 0.25)
    final = "".join(line.ljust(COLUMNS) for line in list(screens(output))[-1])
    assert "".join(f"word{index} " for index in range(12)) in final


class _Shown:
    width = 80

    def show(self, text):
        assert "W" not in text
