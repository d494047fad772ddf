"""What several commands need."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edge_awq.progress import Progress


def progress() -> Progress:
    """A bar on a terminal, lines where standard error is piped."""
    from edge_awq.progress import Bars, Lines

    return Bars() if sys.stderr.isatty() else Lines(partial(click.echo, err=True))
