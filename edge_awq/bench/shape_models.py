"""Models to measure by name: a checkpoint of the exact shape with random weights, and its bundles; made once, kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_awq.bench.results import OWN_PRECISIONS
from edge_awq.errors import EdgeAwqError
from edge_awq.lazy import require
from edge_awq.progress import Progress
from edge_awq.shapes import find_shape

CACHE = "EDGE_AWQ_SHAPES"  # where the models are kept, in place of the usual cache folder


@dataclass(frozen=True)
class ShapeModels:
    """checkpoint: float weights; bundles: one of each precision that was asked for."""

    checkpoint: Path
    bundles: tuple[Path, ...]


def shape_folder() -> Path:
    """$EDGE_AWQ_SHAPES, else ``shapes`` in the user's cache folder."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("edge-awq") / "shapes"


def parse_precisions(text: str | None) -> tuple[str, ...]:
    """ "w4a16,fp16" -> both; None -> w4a16 alone.

    Raises:
        EdgeAwqError: one of them is not known.
    """
    named = tuple(dict.fromkeys(part.strip() for part in (text or OWN_PRECISIONS[0]).split(",")))
    for precision in named:
        if precision not in OWN_PRECISIONS:
            raise EdgeAwqError(f"precision '{precision}' is not known", hint=f"known: {', '.join(OWN_PRECISIONS)}")
    return named


def make_shape_models(name: str, precisions: Sequence[str], target: str, progress: Progress) -> ShapeModels:
    """Make what is not there yet. Plain rounding: the search changes values, not speed.

    Raises:
        EdgeAwqError: the shape or the target is not known, or torch is not installed.
    """
    shape = find_shape(name)
    require("torch", "quantize")
    from edge_awq.bench.random_model import make_random_model
    from edge_awq.pipeline import build
    from edge_awq.request import BuildRequest

    folder = shape_folder() / name
    checkpoint = make_random_model(folder / name, shape, progress=progress)
    bundles = []
    for precision in precisions:
        output = folder / f"{target}-{precision}.bundle"
        request = BuildRequest.from_options(str(checkpoint), target=target, output=output, precision=precision,
                                            recipe="rtn")
        bundles.append(build(request, progress).path)
    return ShapeModels(checkpoint, tuple(bundles))
