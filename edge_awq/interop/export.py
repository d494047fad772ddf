"""A bundle becomes an ordinary quantized Hugging Face folder, with the very integers that the bundle holds.

Scales that AWQ folded into a norm are in the norm that is stored, so the folder is a plain model: config.json with a
quantization_config, safetensors, tokenizer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_awq.bundle import CONFIG, Bundle
from edge_awq.errors import EdgeAwqError
from edge_awq.interop.block import stored_rows
from edge_awq.interop.linear import UnpackedLinear
from edge_awq.interop.pack import WRITERS, Writer
from edge_awq.model.checkpoint import write_tensors
from edge_awq.model.config import DecoderConfig, read_config
from edge_awq.model.family import Family
from edge_awq.model.folds import ACT_SCALE
from edge_awq.model.tokenizer import COMPANIONS, TOKENIZER
from edge_awq.progress import Progress, Quiet
from edge_awq.quantize.int4 import PackedLinear, dequantize, unpack_nibbles
from edge_awq.weights import read_layout, read_tensor

SHARD_BYTES = 1 << 30  # what the export holds in memory at a time
TABLES = (".cos", ".sin")  # rotary tables: every runtime computes its own

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Export:
    """folder: what was written; linears, weights: how many were packed; notes: what the format could not hold."""

    folder: Path
    linears: int
    weights: int
    notes: tuple[str, ...]


def export_bundle(bundle: Path, form: str, output: Path, progress: Progress | None = None) -> Export:
    """Write ``bundle`` into the new folder ``output``; ``form`` is a key of WRITERS.

    Every packed linear is unpacked again and must equal the bundle's.

    Raises:
        EdgeAwqError: no bundle with 4-bit linears, an older one without config.json, or one that ``form`` cannot hold.
    """
    source = _Source(Bundle.open(bundle))
    writer = WRITERS[form](source.group_size, source.symmetric)
    if output.exists():
        raise EdgeAwqError(f"{output} exists already", hint="choose another folder with -o")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        exported = _write(source, writer, partial, progress or Quiet())
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Export(output, *exported)


class _Source:
    """The tensors of a bundle by canonical name, each read when asked for; remembers which were."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        if not (bundle.path / CONFIG).is_file():
            raise EdgeAwqError(f"{bundle.path}: no {CONFIG} to export from; an older edge-awq built the bundle",
                               hint="build the bundle again with this version, or put the source model's "
                               f"config.json into it as {CONFIG}")
        self.layout = read_layout(bundle.weights)
        self.used: set[str] = set()
        self.family, self.config = read_config(bundle.path)
        if "positions" in self.family.names:
            raise EdgeAwqError(f"{bundle.path}: learned positions are stored up to the bundle's context only",
                               hint="export is for models with rotary positions or ALiBi; keep the bundle")
        packed = [name for name in self.layout if name.startswith("blocks.") and name.endswith(".qweight")]
        if not packed:
            raise EdgeAwqError(f"{bundle.path}: precision {bundle.manifest.precision}, no 4-bit linears to export",
                               hint="the model it was built from is the 16-bit checkpoint")
        self.group_size = min(self._group_size(name.removesuffix(".qweight")) for name in packed)
        self.symmetric = all(self._is_symmetric(name.removesuffix(".qweight")) for name in packed)

    def _group_size(self, linear: str) -> int:
        return self.layout[f"{linear}.qweight"].shape[1] * 2 // self.layout[f"{linear}.scales"].shape[1]

    def _is_symmetric(self, linear: str) -> bool:
        zeros = unpack_nibbles(self._read(f"{linear}.zero_points"), self.layout[f"{linear}.scales"].shape[1])
        return bool((zeros == 8).all())

    def _read(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(read_tensor(self.bundle.weights, self.layout[name])))

    def read(self, name: str) -> torch.Tensor:
        """One tensor as it is stored."""
        self.used.add(name)
        return self._read(name)

    @property
    def has_head(self) -> bool:
        """Whether the head has a matrix of its own, and is not the embedding."""
        return "head.weight" in self.layout or self.is_packed("head")

    def is_packed(self, linear: str) -> bool:
        """Whether a linear's weight is stored as integers."""
        return f"{linear}.qweight" in self.layout

    def unpack(self, linear: str) -> UnpackedLinear:
        """A 4-bit linear, its groups as small as the smallest of the model."""
        q, scales, zeros = (self.read(f"{linear}.{part}") for part in ("qweight", "scales", "zero_points"))
        repeat = self._group_size(linear) // self.group_size
        zeros = unpack_nibbles(zeros, scales.shape[1])
        return UnpackedLinear(unpack_nibbles(q, q.shape[1] * 2), scales.repeat_interleave(repeat, dim=1),
                              zeros.repeat_interleave(repeat, dim=1))

    def half(self, linear: str) -> torch.Tensor:
        """A linear's weight as float16, from whatever is stored."""
        if not self.is_packed(linear):
            return self.read(f"{linear}.weight")
        q, scales, zeros = (self.read(f"{linear}.{part}") for part in ("qweight", "scales", "zero_points"))
        inputs = self.config.linear_shape(linear.rpartition(".")[2])[1]
        bits = q.shape[1] * 8 // inputs
        return dequantize(PackedLinear(q, scales, zeros, bits, inputs // scales.shape[1])).half()

    def check_all_used(self) -> None:
        """Nothing of the bundle has been left out.

        Raises:
            EdgeAwqError: a tensor has no place in a Hugging Face checkpoint of this family.
        """
        left = sorted(name for name in self.layout if name not in self.used and not name.endswith(TABLES))
        left = [name for name in left if not (name.endswith(f".{ACT_SCALE}.weight") and (self.read(name) == 1).all())]
        if left:
            raise EdgeAwqError(f"{self.bundle.path}: tensor '{left[0]}' has no place in a Hugging Face checkpoint",
                               hint="build with --recipe rtn, which adds no tensors of its own")


def _write(source: _Source, writer: Writer, folder: Path, progress: Progress) -> tuple[int, int, tuple[str, ...]]:
    shards, kept, linears, weights = _Shards(folder), [source.family.names["head"]], 0, 0
    shards.add(_outer(source))
    with progress.track("export", source.config.num_layers) as advance:
        for index in range(source.config.num_layers):
            for module, parts in _modules(source.family, source.config, index).items():
                tensors, count = _module(source, writer, module, parts)
                shards.add(tensors)
                linears, weights = linears + bool(count), weights + count
                if not count and f"{module}.weight" in tensors and tensors[f"{module}.weight"].ndim == 2:
                    kept.append(module)
            advance(1)
    source.check_all_used()
    shards.finish()
    config, notes = _config(source)
    config["quantization_config"] = writer.config(kept)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in (TOKENIZER, *COMPANIONS):
        if (source.bundle.path / name).is_file():
            shutil.copyfile(source.bundle.path / name, folder / name)
    if len(kept) > 1:
        notes.append(f"{len(kept) - 1} linears stay 16 bits wide, as in the bundle")
    return linears, weights, tuple(notes)


def _outer(source: _Source) -> Tensors:
    """Embedding, positions where there are any, last norm, and the head where it is not the embedding."""
    tensors = {}
    for canonical, module in source.family.names.items():
        tensors |= _vectors(source, canonical, module, ("bias",) if canonical == "head" else ("weight", "bias"))
        if canonical == "head" and source.has_head:
            tensors[f"{module}.weight"] = source.half("head")
    return tensors


def _vectors(source: _Source, canonical: str, module: str, kinds: tuple[str, ...]) -> Tensors:
    names = {f"{canonical}.{kind}": f"{module}.{kind}" for kind in kinds}
    offset = source.family.norm_offset if canonical.endswith("_norm") else 0.0
    scale = source.config.logit_scale if canonical in ("final_norm", "head") else 1.0
    return {stored: source.read(name) / scale - (offset if name.endswith(".weight") else 0.0)
            for name, stored in names.items() if name in source.layout}


def _modules(family: Family, config: DecoderConfig, index: int) -> dict[str, list[str]]:
    """Module of the checkpoint -> the canonical norm, or linears, in it, for block ``index``."""
    prefix = family.block["prefix"].format(i=index)
    modules: dict[str, list[str]] = {}
    for layer in (*family.norms, *family.linears):
        modules.setdefault(f"{prefix}.{family.block[layer]}", []).append(f"blocks.{index}.{layer}")
    return modules


def _module(source: _Source, writer: Writer, module: str, layers: list[str]) -> tuple[Tensors, int]:
    """The tensors of one module of the checkpoint, and how many weights are packed in it."""
    first = layers[0]
    if first.rpartition(".")[2] in source.family.norms:
        return _vectors(source, first, module, ("weight", "bias")), 0
    tensors = {}
    if f"{first}.bias" in source.layout:
        tensors[f"{module}.bias"] = _joined(source, layers, [source.read(f"{layer}.bias") for layer in layers])
    if not source.is_packed(first):
        tensors[f"{module}.weight"] = _joined(source, layers, [source.half(layer) for layer in layers])
        return tensors, 0
    unpacked = [source.unpack(layer) for layer in layers]
    linear = UnpackedLinear(*(_joined(source, layers, [getattr(part, kind) for part in unpacked])
                              for kind in ("q", "scales", "zero_points")))
    if len(linear.q) % writer.row_step:
        raise EdgeAwqError(f"{module}: {len(linear.q)} outputs do not divide by {writer.row_step}, as "
                           f"{writer.layout.name} needs", hint="export to compressed-tensors")
    parts = writer.pack(linear)
    back = writer.layout.unpack(module, parts)
    if not all(torch.equal(getattr(back, kind), getattr(linear, kind)) for kind in ("q", "scales", "zero_points")):
        raise EdgeAwqError(f"{module}: the export would not hold what the bundle does",
                           hint="this is a fault of edge-awq; please report it with the model's name")
    return tensors | {f"{module}.{part}": tensor for part, tensor in parts.items()}, linear.q.numel()


def _joined(source: _Source, layers: list[str], parts: list[torch.Tensor]) -> torch.Tensor:
    """The rows of one module's linears, each where the checkpoint has it."""
    rows = [stored_rows(source.family, source.config, layer.rpartition(".")[2]) for layer in layers]
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
    for place, part in zip(rows, parts, strict=True):
        whole[place] = part
    return whole


def _config(source: _Source) -> tuple[dict[str, Any], list[str]]:
    """config.json as it was, but for what the export changes, with a note for each change that matters."""
    config, notes = json.loads((source.bundle.path / CONFIG).read_text(encoding="utf-8")), []
    for name in ("quantization_config", "compression_config", "dtype", "torch_dtype"):
        config.pop(name, None)
    config["torch_dtype"] = "float16"
    if source.has_head:
        if source.is_packed("head"):
            bits = source.layout["head.qweight"].shape[1] * 8 // source.config.linear_shape("head")[1]
            notes.append(f"the head has {bits} bits in the bundle; it is written as float16, rounded once more")
        if config.get("tie_word_embeddings") is not False:
            config["tie_word_embeddings"] = False
            notes.append("the head is written on its own: the bundle quantized it apart from the embedding")
    return config, notes


class _Shards:
    """Collects tensors and writes them in files of about SHARD_BYTES, with an index where there is more than one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: Tensors = {}
        self._written: list[tuple[Path, list[str]]] = []
        self._bytes = 0

    def add(self, tensors: Tensors) -> None:
        """Take some tensors, and write what has piled up."""
        self._pending |= tensors
        self._bytes += sum(map(_nbytes, tensors.values()))
        if sum(map(_nbytes, self._pending.values())) >= SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        path = self._folder / f"shard-{len(self._written)}"
        write_tensors(path, {name: tensor.contiguous() for name, tensor in self._pending.items()})
        self._written.append((path, list(self._pending)))
        self._pending = {}

    def finish(self) -> None:
        """Write the rest, and give the files the names that other tools look for."""
        if self._pending:
            self._flush()
        if len(self._written) == 1:
            self._written[0][0].rename(self._folder / "model.safetensors")
            return
        weight_map = {}
        for (path, names), new in zip(self._written, self._names(), strict=True):
            path.rename(self._folder / new)
            weight_map |= dict.fromkeys(names, new)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _names(self) -> Iterator[str]:
        count = len(self._written)
        return (f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1))


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
