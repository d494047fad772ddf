#!/usr/bin/env python3
"""Write a checkpoint with the exact shape of a known model and random weights, as a Hugging Face folder.

For measuring speed and memory without a download. One block or table is in memory at a time, and becomes one shard.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edge_awq.bench.random_model import make_random_model, with_blocks
from edge_awq.errors import EdgeAwqError
from edge_awq.progress import Bars, Lines
from edge_awq.shapes import find_shape, shape_names


@click.command(help=__doc__)
@click.argument("shape", type=click.Choice(shape_names()))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The checkpoint's folder.")
@click.option("--blocks", type=int, help="Only so many of the model's blocks.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True)
def main(shape: str, output: Path, blocks: int | None, seed: int) -> None:
    progress = Bars() if sys.stderr.isatty() else Lines(lambda text: click.echo(text, err=True))
    try:
        chosen = find_shape(shape) if blocks is None else with_blocks(find_shape(shape), blocks)
        make_random_model(output, chosen, seed, progress)
    except EdgeAwqError as error:
        raise click.ClickException(f"{error}\n{error.hint}") from error
    click.echo(str(output), err=True)


if __name__ == "__main__":
    main()
