"""What a build was asked for: the command's options, the target's profile, and what a quantized checkpoint dictates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_awq.errors import EdgeAwqError
from edge_awq.interop.block import bundle_group_size, head_is_packed
from edge_awq.model.decoder import Decoder
from edge_awq.target import QuantSpec, Target, find_target


@dataclass(frozen=True)
class BuildRequest:
    """One build as it was asked for.

    Attributes:
        model: a folder or a hub id.
        output: the bundle's folder.
        precision: "w4a16" or "fp16".
        recipe: "awq", "rtn" or "best".
        calibration: None for the built-in text, "self", or a txt or jsonl file.
        resume: True insists on going on, False starts over, None goes on where it can.
        group_size: as it was asked for; None leaves it to the target, or to the checkpoint where that is quantized.
        workers: where blocks are quantized; see edge_awq.quantize.workers.
    """

    model: str
    target: Target
    output: Path
    precision: str
    recipe: str
    calibration: str | None
    quant: QuantSpec
    resume: bool | None
    group_size: int | None = None
    workers: str | None = None

    @classmethod
    def from_options(cls, model: str, **options: Any) -> BuildRequest:
        """From the options of ``edge-awq build``; what is left out comes from the target's profile, or is not done."""
        target = find_target(options["target"])
        quant = target.quant
        group_size = int(options["group_size"]) if options.get("group_size") else None
        if group_size:
            quant = dataclasses.replace(quant, group_size=group_size)
        if options.get("head_bits"):
            quant = dataclasses.replace(quant, head_bits=int(options["head_bits"]))
        if options.get("symmetric"):
            quant = dataclasses.replace(quant, symmetric=True)
        folder = Path(model).expanduser()
        name = folder.resolve().name if folder.is_dir() else model.partition("@")[0].rpartition("/")[2]
        output = options["output"] or Path(f"{name}.bundle")
        return cls(model, target, output, options["precision"], options["recipe"], options.get("calibration"),
                   quant, options.get("resume"), group_size, options.get("workers"))


def as_checkpoint(request: BuildRequest, decoder: Decoder) -> BuildRequest:
    """The request as a quantized checkpoint decides it; the head, where that is not packed, is rounded plainly.

    Raises:
        EdgeAwqError: the options ask for something else than the checkpoint holds.
    """
    layout, size = decoder.checkpoint.layout, bundle_group_size(decoder.checkpoint)
    wrong = {
        f"--precision {request.precision}": request.precision != "w4a16",
        f"--group-size {request.group_size}": request.group_size not in (None, size),
        "--symmetric": request.quant.symmetric and not (layout.symmetric or request.target.quant.symmetric),
    }
    for option, contradicts in wrong.items():
        if contradicts:
            raise EdgeAwqError(f"{option} contradicts the checkpoint: {layout.name}, 4 bits, group size "
                               f"{layout.group_size}, {'symmetric' if layout.symmetric else 'with zero points'}",
                               hint="leave the option out, or give the original 16-bit checkpoint")
    quant = dataclasses.replace(request.quant, group_size=size, symmetric=layout.symmetric,
                                **({"head_bits": 4} if head_is_packed(decoder) else {}))
    return dataclasses.replace(request, recipe="rtn", quant=quant)
