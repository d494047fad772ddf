"""Two ways to set a power mode: nvpmodel with root's rights, and jetson-stats' service, which has them already.

The service does it for everybody in the group jtop and needs no password; in a container its socket is enough. It is
asked by a process of its own, because its client may hang for ever. Not yet verified on device.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import edge_awq
from edge_awq.errors import EdgeAwqError

AUTO, NVPMODEL, JTOP = "auto", "nvpmodel", "jtop"
WAYS = (AUTO, NVPMODEL, JTOP)
JTOP_SOCKET = "/run/jtop.sock"
_ANSWER_S = 120.0  # sudo may ask for a password
_RENEW_S = 60.0


@dataclass(frozen=True)
class PowerMode:
    """One of nvpmodel's modes; numbers mean another mode on every image, names do not."""

    number: int
    name: str


# Sets a mode and returns None, or why it was not set; that the board has it is checked by the caller.
Setter = Callable[[PowerMode], "str | None"]


def find_setter(way: str = AUTO) -> Setter:
    """What sets modes here: nvpmodel for root; else jetson-stats' service where this user may ask it; else sudo.

    Raises:
        EdgeAwqError: an unknown way, or one that is not possible here.
    """
    if way not in WAYS:
        raise EdgeAwqError(f"power modes cannot be set by '{way}'", hint=f"known: {', '.join(WAYS)}")
    may_ask = os.access(JTOP_SOCKET, os.W_OK) and importlib.util.find_spec("jtop") is not None
    if way == JTOP or (way == AUTO and os.geteuid() != 0 and may_ask):
        return JtopSetter()
    return NvpmodelSetter(_find_command())


def _find_command() -> tuple[str, ...]:
    """nvpmodel, through sudo unless this is root."""
    found = {name: shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") for name in (NVPMODEL, "sudo")}
    needed = (NVPMODEL,) if os.geteuid() == 0 else ("sudo", NVPMODEL)
    for name in needed:
        if found[name] is None:
            raise EdgeAwqError(f"{name} is not installed here, so no power mode can be set",
                               hint="in a container mount /run and give --set-by jtop, or run it on the board itself")
    return tuple(str(found[name]) for name in needed)


@dataclass(frozen=True)
class NvpmodelSetter:
    """A mode that powers units down needs a reboot; nvpmodel asks for it, and the answer here is no."""

    command: tuple[str, ...]

    def __call__(self, mode: PowerMode) -> str | None:
        """Set ``mode``."""
        try:
            code, said = _answer_no([*self.command, "-m", str(mode.number)])
        except subprocess.TimeoutExpired:
            return f"{NVPMODEL} gave no answer within {_ANSWER_S:g} s"
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        if any("reboot" in line.lower() for line in lines):
            return "it needs a reboot"
        if code == 0:
            return None
        return lines[-1] if lines else f"{NVPMODEL} ended with code {code}"


@contextmanager
def allowed(setter: Setter) -> Iterator[None]:
    """Inside, sudo asks for no password again: it forgets one in 15 minutes, and the last mode is set after hours."""
    stop = threading.Event()
    if isinstance(setter, NvpmodelSetter) and len(setter.command) > 1:
        threading.Thread(target=_renew, args=(setter.command[0], stop), daemon=True, name="sudo").start()
    try:
        yield
    finally:
        stop.set()


def _renew(sudo: str, stop: threading.Event) -> None:
    while not stop.wait(_RENEW_S):
        with suppress(OSError):
            subprocess.run([sudo, "-n", "-v"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, check=False)


def _answer_no(command: Sequence[str]) -> tuple[int, str]:
    """Exit code and output. Not subprocess.run, whose way to end it fails: nobody but root may kill sudo."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors="replace")
    try:
        said, _ = process.communicate("no\n", _ANSWER_S)
    except BaseException:  # also an interrupt, which must stay one
        with suppress(PermissionError):
            process.kill()
        raise
    return process.returncode, said


@dataclass(frozen=True)
class JtopSetter:
    """Asks the service by ``python``, an interpreter that has jetson-stats."""

    socket: str = JTOP_SOCKET
    python: str = sys.executable
    answer_s: float = 60.0

    def __call__(self, mode: PowerMode) -> str | None:
        """Set ``mode``."""
        command = [self.python, "-m", "edge_awq.tune.ask_jtop", str(mode.number), mode.name, self.socket]
        package_parent = str(Path(edge_awq.__file__).resolve().parent.parent)
        path = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=self.answer_s,
                                  env={**os.environ, "PYTHONPATH": path}, check=False)
        except subprocess.TimeoutExpired:
            return f"jtop: no answer within {self.answer_s:g} s; 'sudo systemctl restart jtop' helps where it hangs"
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            return json.loads(lines[-1])["refused"]
        said = done.stderr.strip().splitlines()
        return f"jtop: {said[-1] if said else f'the process that asks it ended with code {done.returncode}'}"
