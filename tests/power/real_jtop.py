"""The real jtop service of a version, in a process of its own, for tests that measure through it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".cache/jtop"
VERSIONS = ("7.2.2", "4.3.2")


def python_of(version: str) -> str:
    """The interpreter that has this jetson-stats; without it the test is skipped."""
    path = ENVIRONMENTS / version / "bin/python"
    if not path.exists():
        pytest.skip(f"jetson-stats {version} is not there; run scripts/jtop_environments")
    return str(path)


@contextmanager
def service(version: str, i2c_folder: Path, socket: Path) -> Iterator[subprocess.Popen]:
    """The service over a board's tree; all its processes end with the block."""
    log_file = socket.with_suffix(".log")
    with log_file.open("w") as log:
        command = [python_of(version), HERE / "jtop_server.py", i2c_folder, socket]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    try:
        assert server.stdout.readline() == "ready\n", log_file.read_text()
        yield server
    finally:
        with suppress(ProcessLookupError):  # a test has ended it
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()
