"""The command line: parse, call, print. The only package that prints."""

from __future__ import annotations

import errno
import signal
import sys
from types import FrameType
from typing import Any

import click

from edge_awq import __version__
from edge_awq.cli.building import build, compile_engine, export_checkpoint
from edge_awq.cli.measuring import bench, report, tune
from edge_awq.cli.running import run
from edge_awq.cli.showing import inspect, log, plan, targets
from edge_awq.errors import EdgeAwqError

GO_ON = "the same command goes on where this one stopped"


class _Commands(click.Group):
    """Turns every failure that a user can act on into one message and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        pressed = []  # compiled code that Ctrl-C interrupts may turn it into an error of its own

        def interrupt(number: int, frame: FrameType | None) -> None:
            pressed.append(number)
            signal.default_int_handler(number, frame)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            return super().invoke(ctx)
        except EdgeAwqError as error:
            _fail(error.message, error.hint)
        except KeyboardInterrupt:
            _interrupted(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"{place}{error.strerror or error}", None)
        except Exception:
            if pressed:
                _interrupted(ctx)
            raise
        finally:
            signal.signal(signal.SIGINT, before)


def _interrupted(ctx: click.Context) -> None:
    _fail("interrupted", None if ctx.invoked_subcommand != "build" else GO_ON)


def _fail(message: str, hint: str | None) -> None:
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-awq")
def main() -> None:
    """Quantize language models to 4 bits with AWQ and run them on small machines.

    \b
      edge-awq build MODEL -o NAME.bundle     on a workstation
      edge-awq run NAME.bundle -p "Hello"     on the device
    """


for command in (build, compile_engine, run, inspect, export_checkpoint, targets, plan, report, bench, tune, log):
    main.add_command(command)
