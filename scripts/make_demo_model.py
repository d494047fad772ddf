#!/usr/bin/env python3
"""Train a small Llama-architecture language model on Python's own standard library, saved as a Hugging Face folder.

Nothing is downloaded. The folder is kept: a second call with the same settings and Python version returns at once.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from pathlib import Path

import click

from demo_settings import DemoSettings
from edge_awq.progress import Bars, Lines, Progress, Quiet

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "demo-model"
RECORD = "training.json"  # what the folder was made from, and how good it became
DEFAULTS = DemoSettings()


def is_current(folder: Path, settings: DemoSettings) -> bool:
    """Whether ``folder`` holds a model made with these settings; it is whole if it exists, for it is renamed last."""
    record = folder / RECORD
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["stamp"] == settings.stamp()


def make_demo_model(folder: Path, settings: DemoSettings = DEFAULTS, progress: Progress | None = None) -> Path:
    """Train and save the model, unless ``folder`` already holds this very one; returns the folder."""
    if is_current(folder, settings):
        return folder
    from demo_training import train_and_save
    from edge_awq.bench.hf_folder import replacing, write_json

    wall, cpu = time.perf_counter(), time.process_time()
    with replacing(folder) as partial:
        result = train_and_save(partial, settings, progress or Quiet())
        write_json(partial / RECORD, {
            "stamp": settings.stamp(),
            "python": platform.python_version(),
            "settings": dataclasses.asdict(settings),
            "wall_s": round(time.perf_counter() - wall, 1),
            "cpu_s": round(time.process_time() - cpu, 1),
            **dataclasses.asdict(result),
        })
    return folder


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
def main(output: Path) -> None:
    if is_current(output, DEFAULTS):
        click.echo(f"{output}: already there", err=True)
        return
    progress = Bars() if sys.stderr.isatty() else Lines(lambda text: click.echo(text, err=True))
    make_demo_model(output, progress=progress)
    record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    click.echo(f"{output}: {record['parameters'] / 1e6:.1f} M parameters, {record['bits_per_byte']:.2f} bits per byte "
               f"on held-out files, {record['wall_s']:.0f} s", err=True)


if __name__ == "__main__":
    main()
