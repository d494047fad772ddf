"""What several commands need."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_awq.errors import EdgeAwqError

if TYPE_CHECKING:
    from edge_awq.progress import Progress


STDIN = "standard input"


def say_error(message: str, hint: str | None) -> None:
    """Tell the user what is wrong and what can be done about it, on standard error."""
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)


def progress() -> Progress:
    """A bar on a terminal, lines where standard error is piped."""
    from edge_awq.progress import Bars, Lines

    return Bars() if sys.stderr.isatty() else Lines(partial(click.echo, err=True))


class Finite(click.ParamType):
    """A number, from ``minimum`` on where that is given, and neither infinite nor "nan"."""

    name = "float"

    def __init__(self, minimum: float | None = None) -> None:
        self.minimum = minimum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or an error of usage."""
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        if self.minimum is not None and number < self.minimum:
            self.fail(f"{value} is less than {self.minimum:g}.", param, ctx)
        return number


def check_new_file(path: Path | None) -> None:
    """A file can be written at ``path``: what is wrong with it is known before anything long begins.

    Raises:
        EdgeAwqError: it is a folder, or it is to lie in none, or in one that may not be written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise EdgeAwqError(f"{path} is a folder", hint="give the name of a file with -o")
    if not path.parent.is_dir():
        raise EdgeAwqError(f"{path}: there is no folder {path.parent}", hint="make it first, or choose another with -o")
    if not os.access(path.parent, os.W_OK):
        raise EdgeAwqError(f"{path}: you may not write to the folder {path.parent}", hint="choose another with -o")


def form_options(command: Callable[..., None]) -> Callable[..., None]:
    """The forms that a bundle for GPUs can run in."""
    plugin_free = click.option("--plugin-free", is_flag=True,
                               help="With TensorRT's own int4, not edge-awq's plugins: see compile.")
    kv_bits = click.option("--kv-bits", type=click.Choice(["16", "8"]), callback=to_int,
                           help="Of a cached key or value on a GPU.  [default: 16]")
    return kv_bits(plugin_free(command))


def to_int(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A choice of numbers as a number."""
    return None if value is None else int(value)


def decoded(raw: bytes, place: str) -> str:
    """The text of what a user gave.

    Args:
        place: where it comes from.

    Raises:
        EdgeAwqError: it is not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise EdgeAwqError(f"{place}: not UTF-8 text ({error.reason})", hint="convert it to UTF-8") from error


def go_on_after_ctrl_c(interrupt: KeyboardInterrupt) -> None:
    """Forget a Ctrl-C; what any other signal began goes its way. The signals that came are the context's object."""
    came = click.get_current_context().find_object(list) or []
    if came and came[-1] != signal.SIGINT:
        raise interrupt
    came.clear()
