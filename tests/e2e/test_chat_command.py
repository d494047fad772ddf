"""edge-awq chat: through pipes, and on a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from models import TEMPLATE, assert_refused, command, make_model

from edge_awq import load

# Standard input becomes the terminal whose Ctrl-C the process gets.
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "edge_awq", "chat", *sys.argv[1:]])
"""
WAIT_S = 0.5  # between a prompt and the wait for keys Python misses signals
MESSAGES = ["The quick brown fox", "jumps over", "one, two; three"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    make_model(folder / "model", max_position_embeddings=4096)
    (folder / "model" / "generation_config.json").write_text('{"eos_token_id": []}')  # no token ends an answer
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert command("build", folder / "model", "-o", folder / "b", "--recipe", "rtn").code == 0
    return folder / "b"


def answers_of(bundle, messages, max_tokens, system=None):
    """Each answer by itself, from an empty cache, so without anything of the turns before being reused."""
    said, answers = ([] if system is None else [{"role": "system", "content": system}]), []
    with load(bundle) as session:
        for message in messages:
            said.append({"role": "user", "content": message})
            session.reset()
            answers.append("".join(token.text for token in session.chat(said, max_tokens=max_tokens, temperature=0.0)))
            said.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_every_line_is_a_message_and_turns_are_remembered(bundle):
    lines = "\n\n".join(MESSAGES) + "\n \n"
    result = command("chat", bundle, "--greedy", "-n", 6, "--system", "Be brief.", stdin=lines)
    assert result.code == 0
    assert result.out == "".join(f"{answer}\n" for answer in answers_of(bundle, MESSAGES, 6, "Be brief."))
    assert len(re.findall(r"^\[6 tokens at .* of \d+ tokens of context\]$", result.err, re.MULTILINE)) == 3


def test_every_answer_has_its_log(bundle, tmp_path):
    assert command("chat", bundle, "-n", 3, "--log", tmp_path, stdin="a\nb\n").code == 0
    runs = [json.loads(path.read_text().splitlines()[-1]) for path in tmp_path.glob("*/run.jsonl")]
    assert sorted(run["reused_tokens"] > 0 for run in runs) == [False, True]


def test_a_chat_that_outgrows_its_context_says_what_is_forgotten(bundle):
    result = command("chat", bundle, "-n", 8, "--context", 64, stdin="\n".join(MESSAGES * 3) + "\n")
    assert result.code == 0 and result.out.count("\n") >= 9
    assert "[the context is full: the oldest" in result.err


def test_bad_input(bundle, tmp_path):
    assert_refused(command("chat", bundle, "--context", 16, stdin=MESSAGES[0]), "context has room for 16")
    refused = command("chat", bundle, "-n", 2, stdin=b"fine\n\xff\xfe\n")
    assert refused.code == 1 and "line 2: not UTF-8" in refused.err and refused.err.count("Error: ") == 1
    assert command("chat", bundle, "--greedy", "--temperature", 1, stdin="x").code == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(bundle, closed):
    command = ["sh", "-c", f'exec "$0" -m edge_awq chat "$1" -n 2 {closed}', sys.executable, bundle]
    done = subprocess.run(command, input="Hi", capture_output=True, text=True, timeout=60, check=True)
    assert bool(done.stdout) == (closed == "2>&-") and "Traceback" not in done.stderr


def test_a_model_without_a_template_is_refused_before_anything_is_said(tmp_path):
    make_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    assert command("build", tmp_path / "model", "-o", tmp_path / "b", "--precision", "fp16").code == 0
    assert_refused(command("chat", tmp_path / "b", stdin=""), "no chat template")


class Terminal:
    """edge-awq chat on a terminal of its own."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen([sys.executable, "-c", TAKE_TERMINAL, *map(str, arguments)], stdin=slave,
                                        stdout=slave, stderr=slave, start_new_session=True,
                                        env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"})
        os.close(slave)
        self.output = ""

    def wait_for(self, text, since=0, timeout_s=60):
        """Until ``text`` stands in what was written from ``since`` on; returns where it ends."""
        end_s = time.monotonic() + timeout_s
        while (place := self.output.find(text, since)) < 0:
            ready, _, _ = select.select([self.master], [], [], max(0, end_s - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.output[since:]!r}"
            try:
                self.output += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"it ended before {text!r} came: {self.output[-3000:]!r}")
        return place + len(text)

    def type(self, text):
        os.write(self.master, text.encode())

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(bundle):
    opened = []

    def start(*options):
        opened.append(Terminal(bundle, *options))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_on_a_terminal(terminal):
    here = terminal("--greedy", "-n", 4)
    place = here.wait_for("> ", here.wait_for("/help for help"))
    here.type("/help\n")
    place = here.wait_for("> ", here.wait_for("Ctrl-D ends the chat", place))
    here.type("/what\n")
    place = here.wait_for("> ", here.wait_for("/what is not known", place))
    here.type("two \\\nlines\n")
    place = here.wait_for("> ", here.wait_for("tokens of context]", here.wait_for("... ", place)))
    here.type("/clear\n")
    place = here.wait_for("> ", place)
    for _ in range(4):  # a terminal takes lines of up to 4095 characters
        here.type("x y " * 900 + "\\\n")
        place = here.wait_for("... ", place)
    here.type("z\n")
    place = here.wait_for("> ", here.wait_for("say it in fewer words", place))
    time.sleep(WAIT_S)
    here.type("\x03")
    place = here.wait_for("> ", here.wait_for("/exit ends the chat", place))
    here.type("\x04")
    assert here.process.wait(30) == 0


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on(terminal, bundle):
    here = terminal("--temperature", "5")  # random weights fill a context of 4096 tokens, which takes seconds
    place = here.wait_for("> ")
    here.type("tell\n")
    place = here.wait_for("tok/s", place)
    here.type("\x03")
    place = here.wait_for("> ", here.wait_for("tokens of context]", here.wait_for(", broken off", place)))
    here.type("/exit\n")
    assert here.process.wait(30) == 0


def test_a_kill_ends_the_chat(terminal):
    here = terminal()
    here.wait_for("> ")
    time.sleep(WAIT_S)
    here.process.send_signal(signal.SIGTERM)
    assert here.process.wait(30) == -signal.SIGTERM
