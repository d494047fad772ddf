"""A quantized checkpoint seen as a plain one: its packed linears have a ``weight`` like any other, computed when read.

So everything that reads a checkpoint works on it (shape checks, calibration, fused projections); only what stores a
bundle asks for the integers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from edge_awq.errors import EdgeAwqError
from edge_awq.interop import autoawq, compressed, gptq
from edge_awq.interop.linear import ORIGINAL, Layout, Shape, UnpackedLinear
from edge_awq.model.checkpoint import DOWNLOAD_AGAIN, Checkpoint

# quant_method in a quantization_config -> what reads the rest of it.
METHODS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "awq": autoawq.read_config,
    "gptq": gptq.read_config,
    "compressed-tensors": compressed.read_config,
}
READ = ("AutoAWQ (gemm, gemv, gemv_fast), llm-awq (v1, v2), GPTQ (gptq, gptq_v2) and compressed-tensors "
        "(pack-quantized), with 4 bits")
OLDER_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # beside config.json; without quant_method


class PackedCheckpoint(Checkpoint):
    """A checkpoint whose linears are packed as ``layout`` says."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        super().__init__(folder)
        self.layout = layout
        self._sizes = {module: _check_shapes(self, module, layout) for module in packed_modules(self, layout.marker)}
        if not self._sizes:
            raise EdgeAwqError(f"{folder}: config.json says {layout.name}, but no tensor is named *.{layout.marker}",
                               hint="the checkpoint is not complete, or config.json belongs to another model")
        _check_complete(self, layout)

    def __contains__(self, name: str) -> bool:
        return self.is_packed(name) or super().__contains__(name)

    def is_packed(self, name: str) -> bool:
        """Whether ``name`` is the weight of a packed linear."""
        return name.endswith(".weight") and name.removesuffix(".weight") in self._sizes

    def keeps_float(self, name: str) -> bool:
        """Whether the tool that made the checkpoint left this weight unquantized."""
        return not self.is_packed(name)

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, (N, K) for the weight of a packed linear; None when the checkpoint has none."""
        return self._sizes[name.removesuffix(".weight")] if self.is_packed(name) else super().shape(name)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Copies of the named tensors as float32; packed ones are exactly what they stand for."""
        names = list(names)
        tensors = super().read(name for name in names if not self.is_packed(name))
        tensors |= {name: self.unpack(name).value() for name in names if self.is_packed(name)}
        return tensors

    def unpack(self, name: str) -> UnpackedLinear:
        """The integers behind the weight ``name`` of a packed linear.

        Raises:
            EdgeAwqError: our format cannot represent them.
        """
        module = name.removesuffix(".weight")
        wanted = [part for part in self.layout.shapes(*self._sizes[module]) if f"{module}.{part}" in self]
        stored = self.read_stored(f"{module}.{part}" for part in wanted)
        parts = {part: stored[f"{module}.{part}"] for part in wanted}
        word = torch.int16 if isinstance(self.layout, autoawq.Interleaved) else torch.int32
        if parts[self.layout.marker].dtype != word:
            raise EdgeAwqError(f"tensor '{module}.{self.layout.marker}' is {parts[self.layout.marker].dtype}, "
                               f"{self.layout.name} has {word}", hint=ORIGINAL)
        return self.layout.unpack(module, parts)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, quantized or not.

    Raises:
        EdgeAwqError: it is quantized in a way that we do not read, or its tensors contradict each other.
    """
    if (config := _quantization(folder)) is not None:
        method = str(config.get("quant_method"))
        if method not in METHODS:
            raise EdgeAwqError(f"{folder}: the checkpoint is quantized already, by quant_method '{method}'",
                               hint=f"read: {READ}; {ORIGINAL}")
        return PackedCheckpoint(folder, METHODS[method](config))
    checkpoint = Checkpoint(folder)
    modules = packed_modules(checkpoint, "qweight")
    return PackedCheckpoint(folder, _guess(checkpoint, modules[0])) if modules else checkpoint


def packed_modules(checkpoint: Checkpoint, marker: str) -> list[str]:
    """Modules that have a part ``marker``."""
    return [name.removesuffix(f".{marker}") for name in checkpoint.names if name.endswith(f".{marker}")]


def _quantization(folder: Path) -> Mapping[str, Any] | None:
    """What config.json, or an older tool's file beside it, says about quantization."""
    config = _table(folder / "config.json")
    if found := config.get("quantization_config") or config.get("compression_config"):
        return found
    for name, method in OLDER_CONFIGS.items():
        if (folder / name).is_file():
            return {"quant_method": method, **_table(folder / name)}
    return None


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EdgeAwqError(f"{path}: not readable as JSON ({error})", hint="download the file again") from error
    if not isinstance(table, dict) or not isinstance(table.get("quantization_config") or {}, dict):
        raise EdgeAwqError(f"{path}: JSON objects are expected", hint="download the file again")
    return table


def _guess(checkpoint: Checkpoint, module: str) -> Layout:
    """What llm-awq wrote: config.json does not say."""
    shapes = {part: shape for part in ("qweight", "scales", "qzeros", "scaled_zeros")
              if (shape := checkpoint.shape(f"{module}.{part}")) is not None}
    if "scales" in shapes and (layout := autoawq.find_llm_awq(shapes)) is not None:
        return layout
    raise EdgeAwqError(f"{checkpoint.folder}: '{module}' is packed in an unknown way, and config.json has no "
                       "quantization_config", hint=f"read: {READ}; {ORIGINAL}")


def _parts(checkpoint: Checkpoint, module: str, layout: Layout) -> dict[str, Shape]:
    """Shapes of the parts of a packed linear.

    Raises:
        EdgeAwqError: a part is missing, or no matrix.
    """
    found = {part: shape for part in layout.shapes(64, 64)
             if (shape := checkpoint.shape(f"{module}.{part}")) is not None}
    for part in layout.shapes(64, 64):
        if part not in found and part not in layout.optional:
            raise EdgeAwqError(f"{checkpoint.folder}: tensor '{module}.{part}' is missing, though "
                               f"'{module}.{layout.marker}' is there", hint=DOWNLOAD_AGAIN)
        if part in found and len(found[part]) != len(layout.shapes(64, 64)[part]):
            raise EdgeAwqError(f"{checkpoint.folder}: tensor '{module}.{part}' has shape {list(found[part])}",
                               hint=DOWNLOAD_AGAIN)
    return found


def _check_complete(checkpoint: Checkpoint, layout: Layout) -> None:
    """No linear has scales or zero points but nothing that they belong to; _parts() looks for all that belongs to it.

    Raises:
        EdgeAwqError: one has.
    """
    matrices = {part for part, shape in layout.shapes(64, 64).items() if len(shape) == 2}
    for name in checkpoint.names:
        module, _, part = name.rpartition(".")
        if part not in matrices or len(checkpoint.shape(name)) != 2:
            continue  # a vector of scales is an activation's, of AutoAWQ
        if not {f"{module}.{layout.marker}", f"{module}.weight"} & checkpoint.names:
            raise EdgeAwqError(f"{checkpoint.folder}: tensor '{module}.{layout.marker}' is missing, though '{name}' is "
                               "there", hint=DOWNLOAD_AGAIN)


def _contradiction(found: Mapping[str, Shape], layout: Layout) -> str | None:
    """The first part whose shape the others deny."""
    expected = layout.shapes(*layout.size(found))
    return next((part for part, shape in found.items() if shape != expected[part]), None)


def _check_shapes(checkpoint: Checkpoint, module: str, layout: Layout) -> tuple[int, int]:
    """(N, K) of a packed linear, whose parts are there and agree.

    Raises:
        EdgeAwqError: a part is missing, or contradicts the others or the group size.
    """
    found = _parts(checkpoint, module, layout)
    rows, inputs = layout.size(found)
    if part := _contradiction(found, layout):
        if (bits := _other_bits(checkpoint, module, layout)) is not None:
            raise EdgeAwqError(f"tensor '{module}.{layout.marker}' packs {bits} bits per weight, or its groups have "
                               f"another size; other linears have 4 bits in groups of {layout.group_size}",
                               hint=f"where shards of two downloads are mixed, {DOWNLOAD_AGAIN}; else {ORIGINAL}")
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.items())
        raise EdgeAwqError(f"{checkpoint.folder}: '{module}': shapes contradict each other or group size "
                           f"{layout.group_size}, first at {part}: {shapes}",
                           hint="config.json belongs to another checkpoint, or a file is damaged; download both again")
    if layout.group_size != -1 and inputs % layout.group_size:
        raise EdgeAwqError(f"'{module}': {inputs} inputs do not divide into groups of {layout.group_size}",
                           hint=ORIGINAL)
    return rows, inputs


def _other_bits(checkpoint: Checkpoint, module: str, layout: Layout) -> int | None:
    """Bits per weight of a linear whose shapes contradict 4, where those of another linear agree.

    Groups twice as wide look like twice the bits.
    """
    found = _parts(checkpoint, module, layout)
    rows, columns = next(shape for part, shape in found.items() if part in ("scales", "weight_scale"))
    if layout.group_size == -1:
        return None
    word = math.prod(found[layout.marker]) * 32 / (rows * columns * layout.group_size)
    others = packed_modules(checkpoint, layout.marker)
    agree = any(_contradiction(_parts(checkpoint, other, layout), layout) is None for other in others)
    return int(word) if agree and word in (2, 3, 8) else None
