"""What several commands need."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edge_awq.progress import Progress


def to_int(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A choice of numbers as a number."""
    return None if value is None else int(value)


def progress() -> Progress:
    """A bar on a terminal, lines where standard error is piped."""
    from edge_awq.progress import Bars, Lines

    return Bars() if sys.stderr.isatty() else Lines(partial(click.echo, err=True))
