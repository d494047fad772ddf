"""Wheels that the environment lacks, unpacked side by side into the folder that $EDGE_AWQ_REGISTRIES names."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

FOLDER = "EDGE_AWQ_REGISTRIES"
RTX_VERSION = "1.7.1.116"
RTX_PACKAGES = [f"tensorrt-rtx-cu13-{part}=={RTX_VERSION}" for part in ("libs", "bindings")]
PYTHON = f"py{sys.version_info.major}{sys.version_info.minor}"  # these wheels are for one Python each


def kept_folder(what: str, size: str) -> Path:
    """The folder that $EDGE_AWQ_REGISTRIES names; skips the test where none is, and tells what ``what`` costs."""
    if FOLDER not in os.environ:
        pytest.skip(f"no {what}: let {FOLDER} name a folder for a download of {size}")
    return Path(os.environ[FOLDER]).resolve()


def made_once(where: Path, make: Callable[[Path], object]) -> Path:
    """The folder ``where``: what ``make`` fills, unless that was done before; other test processes wait meanwhile."""
    if where.exists():
        return where
    where.parent.mkdir(parents=True, exist_ok=True)
    with where.with_name(where.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not where.exists():
            partial = where.with_name(where.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(where)
    return where


def unpacked(name: str, requirements: Sequence[str], size: str, options: Sequence[str] = ("--no-deps",)) -> Path:
    """The sub-folder ``name`` with the wheels of ``requirements`` unpacked; pip brings what is not there.

    Skips the test where no folder is named; ``size`` tells what the download costs, such as "1 MB".
    """
    def install(partial: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--upgrade"]
        subprocess.run([*pip, *options, "--target", partial, *requirements], check=True)

    return made_once(kept_folder(requirements[0], size) / name, install)
