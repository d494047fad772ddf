#!/usr/bin/env python3
"""Write a checkpoint with the exact shape of a known model and random weights, as a Hugging Face folder.

For measuring speed and memory without a download. One block or table is in memory at a time, and becomes one shard.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edge_awq.bench.random_model import make_random_model
from edge_awq.progress import Bars, Lines
from edge_awq.shapes import find_shape, shape_names


@click.command(help=__doc__)
@click.argument("shape", type=click.Choice(shape_names()))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The checkpoint's folder.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(shape: str, output: Path, seed: int) -> None:
    progress = Bars() if sys.stderr.isatty() else Lines(lambda text: click.echo(text, err=True))
    make_random_model(output, find_shape(shape), seed, progress)
    click.echo(str(output), err=True)


if __name__ == "__main__":
    main()
