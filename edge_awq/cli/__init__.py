"""The command line: parse, call, print. The only package that prints."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType
from typing import Any

import click

from edge_awq import __version__
from edge_awq.cli.building import build, compile_engine, export_checkpoint
from edge_awq.cli.chatting import chat
from edge_awq.cli.common import say_error
from edge_awq.cli.evaluating import evaluate_bundles
from edge_awq.cli.measuring import bench, report, tune
from edge_awq.cli.running import run
from edge_awq.cli.serving import serve
from edge_awq.cli.showing import doctor, inspect, log, plan, targets
from edge_awq.errors import EdgeAwqError
from edge_awq.signals import ENDINGS

GO_ON = "the same command goes on where this one stopped"
_FREE_SPACE, _MAY_I = "free space on that disk, or choose another place", "choose a place that you may use"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE, errno.EDQUOT: _FREE_SPACE, errno.EACCES: _MAY_I, errno.EPERM: _MAY_I,
    errno.EROFS: _MAY_I, errno.ENOENT: "check the path", errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "give a file, not a folder",
}


class _Commands(click.Group):
    """Turns every failure that a user can act on into one message and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        came: list[int] = []  # compiled code that a signal interrupts may turn it into an error of its own
        ctx.obj = came

        def interrupt(number: int, frame: FrameType | None) -> None:
            came.append(number)
            raise KeyboardInterrupt

        wanted = [number for number in ENDINGS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        before = {number: signal.signal(number, interrupt) for number in wanted}
        try:
            return super().invoke(ctx)
        except EdgeAwqError as error:
            _fail(error.message, error.hint)
        except KeyboardInterrupt:
            _interrupted(ctx, came)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"{place}{error.strerror or error}", _REMEDIES.get(error.errno))
        except Exception:
            if came:
                _interrupted(ctx, came)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupted(ctx: click.Context, came: list[int]) -> None:
    """Say so, and end: by the signal itself unless it was Ctrl-C, so that whoever sent it can tell."""
    ended = signal.Signals(came[0]) if came else signal.SIGINT
    hint = GO_ON if ctx.invoked_subcommand == "build" else None
    if ended == signal.SIGINT:
        _fail("interrupted", hint)
    say_error(f"ended by {ended.name}", hint)
    signal.signal(ended, signal.SIG_DFL)
    os.kill(os.getpid(), ended)
    sys.exit(128 + ended)  # the first process of a container is not ended by a signal


def _fail(message: str, hint: str | None) -> None:
    say_error(message, hint)
    sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-awq")
def main() -> None:
    """Quantize language models to 4 bits with AWQ and run them on small machines.

    \b
      edge-awq build MODEL -o NAME.bundle     on a workstation
      edge-awq run NAME.bundle -p "Hello"     on the device
      edge-awq chat NAME.bundle               turn by turn
      edge-awq serve NAME.bundle              for clients of OpenAI's API
    """


for command in (build, compile_engine, run, chat, serve, inspect, evaluate_bundles, export_checkpoint, targets, plan,
                report, bench, tune, log, doctor):
    main.add_command(command)
