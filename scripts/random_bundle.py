"""Bundles of an exact shape with random weights, made in seconds and without torch: for a GPU machine that has little.

Speed does not depend on the values, so packed values and matrices repeat one block of random numbers. They are of the
size that keeps activations finite, and a different seed gives a different model.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from edge_awq import __version__
from edge_awq.bench.hf_folder import hf_config, train_tokenizer, write_text_files
from edge_awq.bundle import GRAPH, WEIGHTS, Bundle, Manifest, seal
from edge_awq.export.graph import build_graph
from edge_awq.export.ops import CONTRACT_VERSION
from edge_awq.model.config import DecoderConfig, parse_config
from edge_awq.model.family import Family, find_family
from edge_awq.model.folds import has_act_scale
from edge_awq.model.rope import rope_tables
from edge_awq.progress import Progress, Quiet
from edge_awq.shapes import Shape
from edge_awq.target import Target
from edge_awq.weights import DTYPES, StoredTensor, TensorSpec, WeightsWriter

BLOCK = 1 << 23  # random numbers that large tensors repeat
GROUP_SIZE, SMALLER_GROUP = 128, 64
LEVELS_STD = math.sqrt((16**2 - 1) / 12)  # of uniform 4-bit values
TO_RESIDUAL = ("o", "down")  # what is added to the residual stream is kept from growing with depth


@dataclass(frozen=True)
class Decoder:
    """A shape in canonical terms; ``bits``: of the blocks' matrices, ``head_bits``: of the head."""

    family: Family
    config: DecoderConfig
    biases: Sequence[str]
    bits: int
    head_bits: int
    context: int

    @classmethod
    def of(cls, shape: Shape, precision: str, head_bits: int = 4, context: int | None = None) -> Decoder:
        """Of a shape; ``context`` None takes all positions that the model was made for."""
        family = find_family(shape.config)
        config = parse_config(shape.config, family)
        bits = {"w4a16": 4, "fp16": 16}[precision]
        return cls(family, config, shape.biases, bits, head_bits if bits == 4 else 16,
                   min(context or config.max_positions, config.max_positions))

    def specs(self) -> list[TensorSpec]:
        """Every tensor of the weights file; of a block's packed matrices one kind after the other."""
        family, config = self.family, self.config
        specs = [TensorSpec("embed.weight", "F16", config.linear_shape("embed")), *self._vectors("final_norm")]
        if "positions" in family.names:
            specs.append(TensorSpec("positions.weight", "F16", (self.context, config.hidden_size)))
        specs += [TensorSpec(f"{rope}.{part}", "F32", (self.context, spec.rotary_size // 2))
                  for rope, spec in config.ropes.items() for part in ("cos", "sin")]
        for index in range(config.num_layers):
            for norm in family.norms:
                specs += self._vectors(f"blocks.{index}.{norm}")
            if self.bits < 16 and has_act_scale(family, config):
                specs.append(TensorSpec(f"blocks.{index}.act_scale.weight", "F32", (config.intermediate_size,)))
            specs += [TensorSpec(f"blocks.{index}.{linear}.bias", "F32", config.linear_shape(linear)[:1])
                      for linear in family.linears if linear in self.biases]
            matrices = [matrix_specs(f"blocks.{index}.{linear}", config.linear_shape(linear), self.bits)
                        for linear in family.linears]
            specs += [spec for kind in zip(*matrices, strict=True) for spec in kind]
        if self.head_bits < 16 or not config.tied_head:
            specs += matrix_specs("head", config.linear_shape("head"), self.head_bits)
        return specs

    def _vectors(self, name: str) -> list[TensorSpec]:
        short = name.rpartition(".")[2]
        kinds = ("weight", "bias") if short in self.biases else ("weight",)
        return [TensorSpec(f"{name}.{kind}", "F32", (self.config.norm_size(short),)) for kind in kinds]


def matrix_specs(name: str, shape: tuple[int, int], bits: int) -> list[TensorSpec]:
    """A linear's tensors: float16, or packed values, scales and zero points."""
    rows, width = shape
    if bits == 16:
        return [TensorSpec(f"{name}.weight", "F16", shape)]
    groups = width // (SMALLER_GROUP if width % GROUP_SIZE else GROUP_SIZE)
    return [TensorSpec(f"{name}.qweight", "U8", (rows, width * bits // 8)),
            TensorSpec(f"{name}.scales", "F16", (rows, groups)),
            TensorSpec(f"{name}.zero_points", "U8", (rows, -(-groups * bits // 8)))]


@dataclass(frozen=True)
class RandomTensors:
    """Values for a decoder's tensors."""

    decoder: Decoder
    rng: np.random.Generator

    @cached_property
    def _normals(self) -> np.ndarray:
        return self.rng.standard_normal(BLOCK, np.float32).astype(np.float16)

    @cached_property
    def _bytes(self) -> np.ndarray:
        return self.rng.integers(0, 256, BLOCK, dtype=np.uint8)

    def make(self, spec: TensorSpec) -> np.ndarray:
        """The values of one tensor."""
        layer, _, kind = spec.name.rpartition(".")
        short = layer.rpartition(".")[2]
        if layer in self.decoder.config.ropes:
            return rope_tables(self.decoder.config.ropes[layer], spec.shape[0])[("cos", "sin").index(kind)]
        if spec.dtype == "F32":  # gains and scales around 1, biases around 0
            return ((kind == "weight") + 0.1 * self.rng.standard_normal(spec.shape)).astype(np.float32)
        if kind == "qweight":
            return self._repeated(self._bytes, spec.shape)
        if kind == "zero_points":  # 7 or 8 in either nibble: beside the middle and not all alike
            nibbles = self.rng.integers(7, 9, (2, *spec.shape), dtype=np.uint8)
            return nibbles[0] | nibbles[1] << 4 if self._bits(short) == 4 else nibbles[0] + 120
        size = self._size(short)
        if kind == "scales":
            spread = LEVELS_STD if self._bits(short) == 4 else 16 * LEVELS_STD
            return (size / spread * self.rng.uniform(0.8, 1.2, spec.shape)).astype(np.float16)
        return self._repeated(self._normals, spec.shape, size)

    def _bits(self, linear: str) -> int:
        return self.decoder.head_bits if linear == "head" else self.decoder.bits

    def _size(self, linear: str) -> float:
        """Standard deviation of a matrix's elements, with which a vector keeps its length."""
        if linear == "positions":
            return 0.02
        columns = self.decoder.config.linear_shape(linear)[1]
        gain = (2 * self.decoder.config.num_layers) ** -0.5 if linear in TO_RESIDUAL else 1.0
        return gain * columns**-0.5

    def _repeated(self, block: np.ndarray, shape: tuple[int, ...], size: float = 1.0) -> np.ndarray:
        count = math.prod(shape)
        start = int(self.rng.integers(len(block) - count)) if count < len(block) else 0
        piece = block[start : start + count]
        return np.resize(piece if block.dtype == np.uint8 else piece * np.float16(size), shape)


def make_random_bundle(folder: Path, shape: Shape, decoder: Decoder, target: Target, seed: int = 0,
                       progress: Progress | None = None) -> Bundle:
    """The bundle ``folder``, in the place of what may be there; nothing half-written stays under that name."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors, specs = RandomTensors(decoder, np.random.default_rng(seed)), decoder.specs()
    words = ["a bundle of random weights answers with random words"]
    write_text_files(partial, hf_config(shape.config, "float16"), train_tokenizer(words, 300))
    total = sum(spec.nbytes for spec in specs)
    with (WeightsWriter(partial / WEIGHTS, specs) as writer,
          (progress or Quiet()).track(f"random weights of {folder.stem}", total) as advance):
        for spec in specs:
            writer.write(spec.name, tensors.make(spec))
            advance(spec.nbytes)
        layout = writer.layout
    onnx.save(build_graph(decoder.family, decoder.config, layout), partial / GRAPH)
    return seal(partial, _manifest(folder.stem, shape, decoder, target, seed), folder)


def planned_layout(specs: Sequence[TensorSpec]) -> dict[str, StoredTensor]:
    """A layout as if the tensors lay in a file one after the other: for graphs of models that nobody stores."""
    layout, offset = {}, 0
    for spec in sorted(specs, key=lambda spec: -DTYPES[spec.dtype].itemsize):
        layout[spec.name] = StoredTensor(spec.name, spec.dtype, spec.shape, offset, spec.nbytes)
        offset += spec.nbytes
    return layout


def _manifest(name: str, shape: Shape, decoder: Decoder, target: Target, seed: int) -> Manifest:
    is_packed = decoder.bits < 16
    quant = {"recipe": "random", "group_size": GROUP_SIZE, "symmetric": False, "head_bits": decoder.head_bits}
    return Manifest(
        name=name, source=shape.name, revision=None, family=decoder.family.name,
        precision="w4a16" if is_packed else "fp16", config=dataclasses.asdict(decoder.config), context=decoder.context,
        prefill_chunk=min(target.limits.prefill_chunk, decoder.context), target=target.name, runtime=target.kind,
        contract_version=CONTRACT_VERSION, quant=quant if is_packed else {}, report=[], engine=None,
        tool_versions={"edge-awq": __version__, "numpy": np.__version__, "onnx": onnx.__version__},
        fingerprint=f"random {shape.name} {decoder.bits} {decoder.head_bits} {decoder.context} {seed}")
